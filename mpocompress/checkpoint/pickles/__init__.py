"""Pickles read as data: their values, their interpreter, and the results of their calls."""
