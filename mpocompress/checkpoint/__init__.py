"""Reading and writing checkpoints.

The form of a file is recognised by its content. Tensors are read lazily and no code from the file is run: torch itself
is loaded only when a tensor is requested. A file is written completely or not at all.
"""
