"""Writing of files, completely or not at all."""
