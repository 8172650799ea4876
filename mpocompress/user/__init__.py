"""The user's own code, model and batches, and the declaration of options.

Imports `file.py:name`, builds the model, loads the dense weights into it and iterates over its batches. Errors raised
by user code name the line that raised them. `options` has the field type that all option classes are declared with.
"""
