"""Fine-tuning of compressed checkpoints towards the outputs of the dense model.

`finetune` trains a model in memory, `finetune_file` a compressed file; both share one trainer, with snapshots to resume
from and distributed training.
"""
