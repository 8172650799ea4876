"""Readers of the forms of checkpoints, one module per form."""
