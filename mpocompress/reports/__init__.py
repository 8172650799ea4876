"""Reports of compressions, plans, benchmarks and fine-tuning as plain values, and their JSON documents.

Nothing here imports torch.
"""
