"""Models in folders and in shards: reading and writing them."""
