"""The command line: one file per command.

Each command parses its options, makes one library call and prints the result. Only this package imports click and rich.
`main` turns the errors of the library into messages and exit codes.
"""
