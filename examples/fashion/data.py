"""Read Fashion-MNIST from the four files in which it is published."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import torch
from torch import Tensor

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
UNSIGNED_BYTE = 0x08  # the element type in the header of an idx file


def read_idx(path: Path) -> Tensor:
    """Return the contents of a gzipped idx file as a uint8 tensor.

    Raises:
        ValueError: If the header is not that of an idx file of bytes, or if the file's length does not fit its shape.
    """
    raw = gzip.decompress(path.read_bytes())
    if len(raw) < 4 or raw[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise ValueError(f"{path}: not an idx file of unsigned bytes (it starts with {raw[:4].hex()})")
    dimensions = raw[3]
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(raw[offset : offset + 4], "big") for offset in range(4, start, 4)]
    if len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path}: has {len(raw) - start:,} bytes of data, but its shape {shape} needs {math.prod(shape):,}"
        )
    return torch.frombuffer(bytearray(raw[start:]), dtype=torch.uint8).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return the images, shape (count, 28, 28), and the labels, shape (count,), of one split, both uint8.

    Args:
        folder: Folder with the four idx files.
        split: `train` (60,000 images) or `t10k` (10,000 test images).

    Raises:
        FileNotFoundError: If a file is missing; the message says how to get it.
        ValueError: If a file is not an idx file of bytes.
    """
    paths = [folder / f"{split}-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: not found. On Debian and Ubuntu, install it with `apt-get install dataset-fashion-mnist`; "
                "on other systems, name the folder with the four Fashion-MNIST idx files: --data FOLDER"
            )
    images, labels = (read_idx(path) for path in paths)
    return images, labels
