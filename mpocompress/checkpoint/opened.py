"""The one concrete `Checkpoint`: what a form's opener found out, with the function that reads a tensor."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import torch

from mpocompress.checkpoint.layout import Layout
from mpocompress.checkpoint.protocol import Place, TensorInfo
from mpocompress.errors import CheckpointError
from mpocompress.text import shown


class OpenedCheckpoint:
    """An open file of any form; see `Checkpoint` for what its attributes mean.

    Args:
        path: the file.
        container: the kind of file.
        key: where the state dict sits.
        tensors: what it holds, in file order.
        extras: the rest of the file.
        metadata: text entries of the header.
        notes: what the user should know.
        document: our JSON text, if any.
        read: returns one tensor by a name that is in `tensors` and is no alias.
        close: lets go of the file; called once.
        classes: module path -> full name of its class.
        config: the configuration beside the weights.
        weights: every file that holds the tensors; by default `path` alone. Empty for what is in memory.
        beside: further files that are read.
        place: tells where a tensor lies in the file; by default none can be replaced there.
        layout: the folder around it, of a checkpoint that is one or is in shards.
    """

    def __init__(
        self,
        *,
        path: Path,
        container: str,
        key: str,
        tensors: Mapping[str, TensorInfo],
        extras: Mapping[str, object] | list[object],
        metadata: Mapping[str, str],
        notes: tuple[str, ...],
        document: str | None,
        read: Callable[[str], torch.Tensor],
        close: Callable[[], None],
        classes: Mapping[str, str] = MappingProxyType({}),
        config: Mapping[str, object] = MappingProxyType({}),
        weights: tuple[Path, ...] | None = None,
        beside: tuple[Path, ...] = (),
        place: Callable[[str], Place | None] = lambda _: None,
        layout: Layout | None = None,
    ) -> None:
        self.path = path
        self.container = container
        self.key = key
        self.tensors = tensors
        self.extras = extras
        self.metadata = metadata
        self.notes = notes
        self.document = document
        self.classes = classes
        self.config = config
        self.layout = layout
        self._weights = (path,) if weights is None else weights
        self.files = (*self._weights, *beside)
        self.size_bytes = sum(file.stat().st_size for file in self.files)
        self._read: Callable[[str], torch.Tensor] | None = read
        self._close = close
        self._place = place
        self._sha256: str | None = None

    @property
    def aliases(self) -> dict[str, str]:
        """Tied tensors: name -> the first name of the same elements."""
        return {name: info.alias_of for name, info in self.tensors.items() if info.alias_of is not None}

    @property
    def own_tensors(self) -> tuple[TensorInfo, ...]:
        """Every tensor once, in file order: those that are no alias."""
        return tuple(info for info in self.tensors.values() if info.alias_of is None)

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor on the CPU, backed by the mapped file (read it, do not write to it).

        Args:
            name: a name in `tensors`; an alias gives the tensor it is tied to.

        Returns:
            The tensor, without gradient.

        Raises:
            CheckpointError: no tensor has this name, its data is damaged, or the checkpoint was closed.
        """
        if self._read is None:
            raise CheckpointError(
                where=str(self.path),
                found=f"{shown(name)} was asked for after the file was closed",
                why="a closed file cannot be read",
                action="Read tensors inside the `with` block.",
            )
        if name not in self.tensors:
            raise CheckpointError(
                where=str(self.path),
                found=f"no tensor is named {shown(name)!r}",
                why="there is nothing to read",
                action="Choose one of the names in `tensors`.",
            )
        return self._read(self.tensors[name].alias_of or name)

    def place(self, name: str) -> Place | None:
        """Return where a tensor lies in the file; None where it cannot be replaced there.

        Args:
            name: a name in `tensors`; an alias gives the place of the tensor it is tied to.

        Returns:
            The place, or None.
        """
        return self._place(self.tensors[name].alias_of or name)

    def in_folder(
        self,
        path: Path,
        *,
        layout: Layout,
        config: Mapping[str, object],
        beside: tuple[Path, ...],
        notes: tuple[str, ...],
    ) -> Self:
        """Return this file as the weights of a folder; it takes the place of this one, which is not closed by itself.

        Args:
            path: the folder, as it was named.
            layout: how it is laid out.
            config: the configuration in it.
            beside: further files that are read.
            notes: what the user should know beside what is known already.

        Returns:
            A copy, with the tensors and the digest of this file.
        """
        whole = copy.copy(self)
        whole.path, whole.layout, whole.config = path, layout, config
        whole.notes = (*notes, *self.notes)
        whole.files = (*self.files, *beside)
        whole.size_bytes = self.size_bytes + sum(file.stat().st_size for file in beside)
        return whole

    def sha256(self) -> str:
        """Return the SHA-256 of the files that hold the tensors in hexadecimal, reading them once.

        A configuration beside them does not count: a folder with one file of weights has the digest of that file.

        Returns:
            64 hexadecimal digits; of several files, the digest of their hexadecimal digests, an index before its
            shards.
        """
        if self._sha256 is None:
            digests = []
            for file in self._weights:
                with file.open("rb") as stream:
                    digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
            whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
            self._sha256 = whole
        return self._sha256

    def __enter__(self) -> Self:
        """Return the checkpoint itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._read is not None:
            self._read = None
            self._close()
