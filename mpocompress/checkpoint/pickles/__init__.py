"""Pickles read as data: what they hold, how they are followed, what their calls make."""
