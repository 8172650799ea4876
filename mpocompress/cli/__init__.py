"""The command line.

Each command parses its options, makes one library call and prints the result. Only this package imports click and rich,
and only `cli/main.py` catches exceptions.
"""
