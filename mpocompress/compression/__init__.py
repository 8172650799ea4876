"""Compression of checkpoint files: compress, plan, inspect and expand.

Each function opens a checkpoint, processes its matrices, a few at a time, and writes a file or returns a report. The
content of a compressed file (cores and report) is read here, also for `modules`.
"""
