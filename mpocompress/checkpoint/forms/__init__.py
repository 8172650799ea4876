"""One file a form of checkpoint: each opens its own."""
