"""A Fashion-MNIST classifier, and the inputs that `--calibrate` and `--data` use.

The commands name what they need from this file: `--model net.py:build`, `--calibrate net.py:batches`,
`--data net.py:train`. It does not import mpocompress.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IMAGES = Path(__file__).with_name("heldout.safetensors")
PIXEL_MEAN = 0.2860  # of the 60,000 training images, pixels scaled to 0..1
PIXEL_STD = 0.3530


class FashionLSTM(nn.Module):
    """An LSTM that reads an image row by row, and a linear layer on its last hidden state."""

    def __init__(self) -> None:
        """Create both layers with torch's default initialisation."""
        super().__init__()
        self.lstm = nn.LSTM(28, 256, batch_first=True)
        self.head = nn.Linear(256, len(CLASSES))

    def forward(
        self,
        rows: Tensor,  # shape: (batch, 28 rows, 28 pixels)
    ) -> Tensor:  # shape: (batch, 10)
        """Return the logits of images normalised by `prepare`."""
        _, (hidden, _) = self.lstm(rows)
        logits: Tensor = self.head(hidden[-1])
        return logits


def build() -> FashionLSTM:
    """Return an untrained network, ready for `load_state_dict`."""
    return FashionLSTM()


def prepare(
    images: Tensor,  # shape: (batch, 28, 28), uint8
) -> Tensor:  # shape: (batch, 28, 28), float32
    """Return the images normalised as in training: zero mean, unit standard deviation."""
    return (images.to(torch.float32) / 255.0 - PIXEL_MEAN) / PIXEL_STD


def batches() -> tuple[Tensor, ...]:
    """Return 512 images without labels, in batches of 32."""
    return torch.split(prepare(load_file(IMAGES)["images"][:512]), 32)


def train() -> tuple[Tensor, ...]:
    """Return 1,800 images without labels, in batches of 64."""
    return torch.split(prepare(load_file(IMAGES)["images"][:1800]), 64)


def accuracy(
    model: nn.Module,
    images: Tensor,  # shape: (count, 28, 28), uint8
    labels: Tensor,  # shape: (count,)
    batch_size: int = 500,
) -> float:
    """Return the fraction of images, 0 to 1, that are classified correctly; sets the model to evaluation mode."""
    model.eval()
    correct = 0
    with torch.inference_mode():
        for batch, expected in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):
            correct += int((model(prepare(batch)).argmax(dim=1) == expected).sum())
    return correct / len(images)
