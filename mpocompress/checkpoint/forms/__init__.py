"""The forms of checkpoint files that can be read, one opener each; `zip_records` is shared by the zip forms.

A new form also needs its detection in `sniff` and its opener in `reader`. `unsafe_pickle` runs code from the file,
and is used only if the user allows it.
"""
