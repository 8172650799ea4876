"""Reading and writing checkpoint files and folders.

`reader` recognises the form of a file by its content (`sniff`) and opens it with a file of `forms`; tensors are read
when they are requested. No code from a file is run unless the user allows pickles. A file is written completely or
not at all.
"""
