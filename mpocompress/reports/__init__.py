"""Reports as plain values: what was compressed, planned, timed or fine-tuned, their verdicts and JSON documents.

Nothing here imports torch.
"""
