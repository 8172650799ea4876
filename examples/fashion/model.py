"""The example network: an LSTM that reads a Fashion-MNIST image row by row, and a linear head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PIXEL_MEAN = 0.2860  # of the 60,000 training images, pixels scaled to 0..1
PIXEL_STD = 0.3530


class FashionLSTM(nn.Module):
    """Classify an image from the last hidden state of an LSTM that has read its 28 rows in order."""

    def __init__(self) -> None:
        """Make the two layers with torch's own initial weights."""
        super().__init__()
        self.lstm = nn.LSTM(28, 256, batch_first=True)
        self.head = nn.Linear(256, len(CLASSES))

    def forward(
        self,
        rows: Tensor,  # shape: (batch, 28 rows, 28 pixels)
    ) -> Tensor:  # shape: (batch, 10)
        """Return one logit a class.

        Args:
            rows: Images as `prepare` returns them.
        """
        _, (hidden, _) = self.lstm(rows)
        logits: Tensor = self.head(hidden[-1])
        return logits


def build() -> FashionLSTM:
    """Return an untrained network, ready for `load_state_dict`."""
    return FashionLSTM()


def prepare(
    images: Tensor,  # shape: (batch, 28, 28), uint8
) -> Tensor:  # shape: (batch, 28, 28), float32
    """Return the images as the network was trained to read them: zero mean, unit standard deviation."""
    return (images.to(torch.float32) / 255.0 - PIXEL_MEAN) / PIXEL_STD


def accuracy(
    model: nn.Module,
    images: Tensor,  # shape: (count, 28, 28), uint8
    labels: Tensor,  # shape: (count,)
    batch_size: int = 500,
) -> float:
    """Return the fraction of images, 0 to 1, whose largest logit is at their label.

    The model is left in evaluation mode.

    Args:
        model: A network that reads what `prepare` returns.
        images: Grey images, 0 black to 255 white.
        labels: The class number of each image.
        batch_size: How many images one call of the model gets; it bounds the memory.
    """
    model.eval()
    correct = 0
    with torch.inference_mode():
        for batch, wanted in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):
            correct += int((model(prepare(batch)).argmax(dim=1) == wanted).sum())
    return correct / len(images)
