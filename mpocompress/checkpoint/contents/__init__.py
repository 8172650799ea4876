"""Conversion of the values in a file to an open checkpoint: the state dict, its tensors, and the rest."""
