"""A reader of pickles that runs nothing: instructions are followed, and calls become plain values."""
