"""Files written all or nothing."""
