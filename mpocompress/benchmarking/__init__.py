"""Timing of compressed models against dense ones on this machine: the `bench` command.

Times single layers or the user's model in every execution mode, with torch's dense kernels and with dynamic int8, in
interleaved samples.
"""
