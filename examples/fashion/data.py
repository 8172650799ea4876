"""Reading Fashion-MNIST from the four files that it is published as."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import torch
from torch import Tensor

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
UNSIGNED_BYTE = 0x08  # the idx format's code for its element type


def read_idx(path: Path) -> Tensor:
    """Return the bytes of a gzipped idx file as a uint8 tensor of the shape in its header.

    Args:
        path: One of the four files of the data set.

    Raises:
        ValueError: If the header is not that of an idx file of bytes, or the file's length does not fit its shape.
    """
    raw = gzip.decompress(path.read_bytes())
    if len(raw) < 4 or raw[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise ValueError(f"{path}: not an idx file of unsigned bytes (it starts with {raw[:4].hex()})")
    dimensions = raw[3]
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    if len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path}: {len(raw) - start:,} bytes of data, where its shape {shape} needs {math.prod(shape):,}"
        )
    return torch.frombuffer(bytearray(raw[start:]), dtype=torch.uint8).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return the images, (count, 28, 28), and the labels, (count,), of one split, both uint8.

    Args:
        folder: Where the four idx files lie.
        split: `train` (60,000 images) or `t10k` (10,000 test images).

    Raises:
        FileNotFoundError: If the folder does not hold the files, with the way to get them.
        ValueError: If a file is not an idx file of bytes.
    """
    paths = [folder / f"{split}-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: not found. On Debian and Ubuntu `apt-get install dataset-fashion-mnist` brings it; "
                "elsewhere give the folder with the four Fashion-MNIST idx files: --data FOLDER"
            )
    images, labels = (read_idx(path) for path in paths)
    return images, labels
