"""The command line: flags in, one library call, the result shown."""
