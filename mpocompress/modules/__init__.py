"""Compressed layers in a user's `nn.Module`: load, save and compress_module.

Tensors of a compressed file are matched to the parameters of a model, and its LSTM and Linear layers are replaced by
MPO layers. A model is changed completely or not at all.
"""
