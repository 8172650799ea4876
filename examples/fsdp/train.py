"""Train a compressed file with FSDP2: every process holds a part of each core, and process 0 writes the result.

torchrun --standalone --nproc-per-node 2 examples/fsdp/train.py small.pt tuned.pt
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import mpocompress

IMAGES = Path(__file__).resolve().parents[1] / "fashion" / "heldout.safetensors"
STEPS = 4
BATCH_SIZE = 64  # over all processes


class Classifier(nn.Module):
    """The network of the bundled checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, 256, batch_first=True)
        self.head = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return one logit per class; images have shape (batch, 28, 28)."""
        logits: Tensor = self.head(self.lstm(images)[0][:, -1])
        return logits


def train(model: nn.Module, *, rank: int = 0, processes: int = 1) -> None:
    """Train for a few steps, on the samples of this process in every batch.

    Args:
        model: the model, sharded or not.
        rank: number of this process.
        processes: number of processes.
    """
    data = load_file(IMAGES)
    images, labels = (data["images"] / 255 - 0.2860) / 0.3530, data["labels"].long()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS):
        samples = slice(step * BATCH_SIZE + rank, (step + 1) * BATCH_SIZE, processes)
        loss = nn.functional.cross_entropy(model(images[samples]), labels[samples])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def run(source: Path, target: Path) -> None:
    """Load, shard, train, gather, and save."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = mpocompress.load(source, Classifier())
    for layer in model.children():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)

    train(model, rank=dist.get_rank(), processes=dist.get_world_size())

    gathered = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:  # the other processes get an empty state dict
        result = mpocompress.load(source, Classifier())
        result.load_state_dict(gathered)
        mpocompress.save(result, target)


def main() -> None:
    """Run in one of the processes that torchrun starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a compressed file")
    parser.add_argument("target", type=Path, help="the file to write")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    run(options.source, options.target)
    gc.collect()  # a group that a model still refers to keeps threads that can crash the exit
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
