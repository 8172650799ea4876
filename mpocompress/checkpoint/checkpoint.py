"""An open checkpoint: names, shapes and dtypes are known, tensors are read on request.

No weight is read and torch is not loaded until a tensor, or the values beside the tensors, are requested.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, final

from mpocompress.checkpoint.deferred import Deferred
from mpocompress.checkpoint.dtypes import DType
from mpocompress.checkpoint.layout import Layout
from mpocompress.checkpoint.lazy_tensors import LazyTensor
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

if TYPE_CHECKING:
    import torch

    from mpocompress.checkpoint import tensors as torch_tensors
else:
    torch_tensors = Deferred("mpocompress.checkpoint.tensors")

TORCH_ZIP = "torch-zip"
TORCHSCRIPT = "torchscript"
TORCH_LEGACY = "torch-legacy"
TORCH_EXPORT = "torch-export"
PICKLE = "pickle"
SAFETENSORS = "safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Name, shape and dtype of one tensor of a checkpoint.

    Args:
        name: name in the state dict.
        shape: dimensions.
        dtype: element type.
        alias_of: the first name, in file order, that holds exactly the same elements in memory (tied weights: same
            storage, offset, shape and strides); None for that first one and for every untied tensor.

    Raises:
        CheckpointError: a dimension is negative.

    Example:
        >>> from mpocompress.checkpoint.dtypes import FLOAT16
        >>> info = TensorInfo(name="b", shape=(3, 2), dtype=FLOAT16)
        >>> info.numel, info.size_bytes
        (6, 12)
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    alias_of: str | None = None

    def __post_init__(self) -> None:
        """Check the shape."""
        if any(size < 0 for size in self.shape):
            raise CheckpointError(
                where=shown(self.name),
                found=f"shape {self.shape}",
                why="a tensor has no negative dimension",
                action="Save the model again.",
            )

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements."""
        return self.numel * self.dtype.itemsize


class TensorSource(ABC):
    """The tensors of an open checkpoint, by name.

    Attributes:
        files: the files that hold the tensors, an index before its shards.
        closed: whether the source was closed.
    """

    files: tuple[Path, ...] = ()
    closed: bool = False

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes of the files, or of the tensors in memory."""

    @abstractmethod
    def find(self, name: str) -> LazyTensor:
        """Return a tensor, not yet read, by a name that is no alias."""

    @abstractmethod
    def sha256(self) -> str:
        """Return a digest of all bytes, 64 hexadecimal digits."""

    def close(self) -> None:
        """Release the files; tensors that were read stay valid."""
        self.closed = True


@final
class FileSource(TensorSource):
    """The tensors in one or several files.

    Args:
        files: the files, an index before its shards.
        find: returns a tensor, not yet read, by a name that is no alias.
        close: releases the files.
    """

    def __init__(
        self, files: tuple[Path, ...], find: Callable[[str], LazyTensor], close: Callable[[], None] = lambda: None
    ) -> None:
        self.files = files
        self._size_bytes = sum(file.stat().st_size for file in files)
        self._find = find
        self._close = close
        self._sha256: str | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the files."""
        return self._size_bytes

    def find(self, name: str) -> LazyTensor:
        """Return a tensor, not yet read, by a name that is no alias."""
        return self._find(name)

    def sha256(self) -> str:
        """Return the SHA-256 of the file, or of the hexadecimal digests of several."""
        if self._sha256 is None:
            digests = []
            for file in self.files:
                with file.open("rb") as stream:
                    digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
            self._sha256 = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        return self._sha256

    def close(self) -> None:
        """Release the files, once."""
        if not self.closed:
            super().close()
            self._close()


@final
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Checkpoint:
    """One open file, folder of files, or state dict in memory.

    Use it as a context manager: leaving it closes the file, and tensors that were read stay valid.

    Args:
        path: the file or folder, as the user gave it.
        container: kind of file, such as `torch-zip` or `safetensors`.
        tensors: every tensor of the state dict, in file order.
        source: returns tensors by name.
        key: position of the state dict in the file: "" is the top, else the key, dotted if nested deeper.
        lazy_extras: as `extras`, with descriptions of tensors and other values of torch in place of them.
        metadata: text entries of a safetensors header, ours excluded.
        notes: one-line sentences on what the reader dropped, carried over or chose.
        document: JSON text of our own format if this is a compressed file, not parsed; else None.
        classes: module path -> full name of its class (`torch.nn.modules.rnn.LSTM`), if the file records it. Paths
            belong to `tensors`: the weight of `encoder.fc` is `encoder.fc.weight`; "" is the model itself.
        config: content of the config.json beside the weights of a Hugging Face folder.
        layout: the folder around the weights if a folder or an index of shards was opened; None for one file.
        config_files: files with the configuration, which are read too.
    """

    __module__ = "mpocompress"

    path: Path
    container: str
    tensors: Mapping[str, TensorInfo]
    source: TensorSource
    key: str = ""
    lazy_extras: Mapping[str, object] | list[object] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    document: str | None = None
    classes: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    layout: Layout | None = None
    config_files: tuple[Path, ...] = ()

    @property
    def own_tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors that are no alias of another, in file order."""
        return tuple(info for info in self.tensors.values() if info.alias_of is None)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Alias -> name of the tensor that it is tied to."""
        return {name: info.alias_of for name, info in self.tensors.items() if info.alias_of is not None}

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read; none of them may be the output."""
        return (*self.source.files, *self.config_files)

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all files; of a state dict in memory, bytes of its tensors."""
        return self.source.size_bytes + sum(file.stat().st_size for file in self.config_files)

    @cached_property
    def extras(self) -> Mapping[str, object] | list[object]:
        """The rest of the file, in its own nesting, without the parts that `notes` reports as dropped.

        At `key` it keeps a dict with the entries of the state dict that are no tensors (often none), so that
        `write_checkpoint` can restore the nesting. Always empty for safetensors.
        """
        extras: Mapping[str, object] | list[object] = torch_tensors.materialise(self.lazy_extras)
        return extras

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor on the CPU, backed by the mapped file: do not write to it.

        Args:
            name: a name in `tensors`; an alias returns the tensor it is tied to.

        Raises:
            CheckpointError: no tensor has this name, its data is damaged, or the checkpoint was closed.
        """
        return torch_tensors.make_tensor(self.lazy_tensor(name))

    def lazy_tensor(self, name: str) -> LazyTensor:
        """Return the description of one tensor; nothing is read.

        Args:
            name: a name in `tensors`; an alias returns the tensor it is tied to.

        Raises:
            CheckpointError: no tensor has this name, or the checkpoint was closed.
        """
        if self.source.closed:
            raise CheckpointError(
                where=str(self.path),
                found=f"{shown(name)} was requested after the file was closed",
                why="a closed file cannot be read",
                action="Read tensors inside the `with` block.",
            )
        if name not in self.tensors:
            raise CheckpointError(
                where=str(self.path),
                found=f"no tensor is named {shown(name)!r}",
                why="nothing can be read",
                action="Choose one of the names in `tensors`.",
            )
        return self.source.find(self.tensors[name].alias_of or name)

    def sha256(self) -> str:
        """Return the SHA-256 of the files that hold the tensors in hexadecimal, reading them once.

        A configuration beside them does not count: a folder with one file of weights has the digest of that file. The
        digest of several files is that of their hexadecimal digests, an index before its shards.
        """
        return self.source.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.source.close()

    def __repr__(self) -> str:
        return f"<Checkpoint {str(self.path)!r}: {self.container}, {len(self.tensors):,} tensors>"
