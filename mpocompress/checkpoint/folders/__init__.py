"""Reading and writing of model folders and sharded checkpoints."""
