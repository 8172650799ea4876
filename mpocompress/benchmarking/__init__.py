"""Timing of compressed models against dense ones on this machine: the `bench` command.

Times single layers or the user's model with every execution mode, torch's dense kernels and dynamic int8, interleaved.
"""
