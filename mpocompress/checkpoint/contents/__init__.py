"""Choice of the state dict inside a checkpoint, and what is carried over beside its tensors.

A checkpoint may nest state dicts, modules, optimizer states and hyperparameters; `state_dict_search` finds the weights.
"""
