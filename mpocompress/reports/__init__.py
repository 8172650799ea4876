"""Reports as plain values: what was compressed, planned, timed or fine-tuned, and their JSON documents.

Nothing here imports torch.
"""
