"""Writing of single files: new checkpoints, copies of the original form, and the spool of finished cores.

Every file is written under a temporary name and renamed when it is complete.
"""
