"""Fine-tuning of compressed models towards the outputs of the original model.

`finetune_module` trains a module, `finetune` a compressed checkpoint file; both use one trainer, which can resume
stopped runs and train in several processes.
"""
