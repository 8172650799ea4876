"""What an open checkpoint answers, whatever its form on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

from mpocompress.checkpoint.layout import Layout
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

TORCH_ZIP = "torch-zip"
TORCHSCRIPT = "torchscript"
TORCH_LEGACY = "torch-legacy"
TORCH_EXPORT = "torch-export"
PICKLE = "pickle"
SAFETENSORS = "safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Name, shape and dtype of one tensor of a checkpoint, known without reading its data.

    Args:
        name: its name in the state dict.
        shape: its dimensions.
        dtype: its element type.
        size_bytes: bytes of its elements, strides aside.
        alias_of: the first name, in file order, that holds exactly the same elements in memory (tied weights: same
            storage, offset, shape and strides); None for that first one and for every untied tensor.

    Raises:
        CheckpointError: a dimension is negative, or shape, dtype and size_bytes disagree.

    Example:
        >>> TensorInfo(name="b", shape=(3, 2), dtype=torch.float16, size_bytes=12, alias_of=None).numel
        6
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    size_bytes: int
    alias_of: str | None

    def __post_init__(self) -> None:
        """Check that the numbers belong together."""
        if any(size < 0 for size in self.shape) or self.numel * self.dtype.itemsize != self.size_bytes:
            raise CheckpointError(
                where=shown(self.name),
                found=f"shape {self.shape}, {self.dtype} and {self.size_bytes} bytes",
                why="these numbers do not belong to one tensor",
                action="Save the model again.",
            )

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the elements of a tensor lie in its file.

    Args:
        offset: bytes before the first element.
        stride: elements from one entry to the next, for every dimension.
        swapped: whether the bytes of every element are in the order of the other kind of processor.
    """

    offset: int
    stride: tuple[int, ...]
    swapped: bool


class Checkpoint(Protocol):
    """One open file, or folder of files: what it holds is known, its tensors are read when asked for.

    Use it as a context manager: leaving it closes the file, and tensors handed out before stay valid.
    """

    @property
    def path(self) -> Path:
        """The file or folder, as it was named."""

    @property
    def container(self) -> str:
        """The kind of file: `torch-zip` or `safetensors`."""

    @property
    def key(self) -> str:
        """Where the state dict sits in the file: "" at the top, else the key, dotted when deeper."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the state dict, in file order."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """Tied tensors: name -> the first name of the same elements."""

    @property
    def own_tensors(self) -> tuple[TensorInfo, ...]:
        """Every tensor once, in file order: those that are no alias."""

    @property
    def extras(self) -> Mapping[str, object] | list[object]:
        """The rest of the file, in its own nesting, without what `notes` says was dropped.

        At `key` it keeps a dict with the entries of the state dict that are no tensors (often none), so that
        `write_checkpoint` can put everything back in its place. Always empty for safetensors.
        """

    @property
    def metadata(self) -> Mapping[str, str]:
        """The text entries of a safetensors header, our own aside; empty for a torch file."""

    @property
    def notes(self) -> tuple[str, ...]:
        """One-line sentences on what the reader dropped, carried over or chose."""

    @property
    def classes(self) -> Mapping[str, str]:
        """Module path -> full name of its class (`torch.nn.modules.rnn.LSTM`), where the file records it; else empty.

        Paths belong to `tensors`: the weight of `encoder.fc` is `encoder.fc.weight`; "" is the model itself.
        """

    @property
    def config(self) -> Mapping[str, object]:
        """What the config.json beside the weights of a Hugging Face folder says; empty where there is none."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read; none of them may be the output."""

    @property
    def layout(self) -> Layout | None:
        """The folder around the weights, where a folder or an index of shards was opened; None for one file."""

    @property
    def document(self) -> str | None:
        """The JSON text of our own format if this is a compressed file, unread; else None."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor on the CPU, backed by the mapped file (read it, do not write to it)."""

    def place(self, name: str) -> Place | None:
        """Return where a tensor lies in the file; None where it cannot be replaced there."""

    def sha256(self) -> str:
        """Return the SHA-256 of the file with the tensors in hexadecimal; of several, that of their digests."""

    def in_folder(
        self,
        path: Path,
        *,
        layout: Layout,
        config: Mapping[str, object],
        beside: tuple[Path, ...],
        notes: tuple[str, ...],
    ) -> Self:
        """Return this file as the weights of a folder, to be used and closed in its place."""

    def __enter__(self) -> Self:
        """Return the checkpoint itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
