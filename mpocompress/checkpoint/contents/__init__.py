"""From what a file held to an open checkpoint: the state dict, its tensors, and the rest."""
