"""Compression of checkpoint files: compress, plan, inspect and expand.

Each function opens a checkpoint, processes its matrices one at a time and writes a file or returns a report.
"""
