"""What the repository needs to check itself; not part of the package that users install."""
