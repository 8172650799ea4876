"""The tensors of a compressed file after training, in its names, order and dtypes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.torch_dtypes import torch_dtype
from mpocompress.compression.core_tensors import core_tensors
from mpocompress.errors import FinetuneError
from mpocompress.modules.load import Loaded
from mpocompress.modules.provenance import provenance_of
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.quantisation import quantise, rounded
from mpocompress.nn import MPOWeight
from mpocompress.reports.matrix import MatrixReport
from mpocompress.text import shown


class TrainedFile:
    """A compressed file and the model that it was loaded into.

    Args:
        checkpoint: the file, open.
        loaded: the model.

    Raises:
        FinetuneError: the model has one tensor of the file several times, not tied.
    """

    def __init__(self, checkpoint: Checkpoint, loaded: Loaded) -> None:
        self._checkpoint, self._model, self._stored = checkpoint, loaded.model, loaded.stored
        identities: dict[str, set[int]] = {}
        for name, tensor in self._plain():
            identities.setdefault(name, set()).add(id(tensor))
        for matrix, weight in self._weights():
            identities.setdefault(matrix.name, set()).add(id(weight))
        untied = next((name for name, different in identities.items() if len(different) > 1), None)
        if untied is not None:
            raise FinetuneError(
                where=shown(untied),
                found="one tensor in the file, but several in the model that are not tied to each other",
                why="training would make them different, and the file stores one",
                action="Tie them where the model is built, as they were when it was saved.",
            )

    def round_weights(self) -> bool:
        """Round the weights of the model to the dtypes of the file, and return whether that changed any.

        Raises:
            FinetuneError: a number that the dtype in the file cannot hold.
        """
        is_changed = False
        with torch.no_grad():
            for matrix, weight in self._weights():
                cores = rounded(_mpo(weight), torch_dtype(matrix.dtype)).cores
                for core, value in zip(weight.cores, cores, strict=True):
                    is_changed |= _assign(core, value, matrix.name, matrix.dtype)
            for name, tensor in self._plain():
                dtype = self._checkpoint.tensors[name].dtype
                is_changed |= _assign(tensor, tensor.to(torch_dtype(dtype)), name, dtype.name)
        return is_changed

    def tensors(self) -> dict[str, Tensor]:
        """Return name in the file -> tensor of the model, in the order and dtypes of the file, without tied names."""
        trained: dict[str, Tensor] = {}
        for matrix, weight in self._weights():
            mpo = _mpo(weight)
            trained |= core_tensors(matrix.name, quantise(mpo) if matrix.scale_names else mpo)
        trained |= dict(self._plain())
        return {
            info.name: self._stored_tensor(info.name, trained.get(info.name)) for info in self._checkpoint.own_tensors
        }

    def _stored_tensor(self, name: str, tensor: Tensor | None) -> Tensor:
        if tensor is None:
            return self._checkpoint.tensor(name)
        return tensor.detach().cpu().to(torch_dtype(self._checkpoint.tensors[name].dtype)).contiguous()

    def _weights(self) -> Iterator[tuple[MatrixReport, MPOWeight]]:
        for module in self._model.modules():
            provenance = provenance_of(module) if isinstance(module, MPOWeight) else None
            if provenance is not None and isinstance(module, MPOWeight):
                yield provenance.matrix, module

    def _plain(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that are stored without cores: first name in the file, and tensor of the model."""
        state = self._model.state_dict(keep_vars=True)
        for name, stored in self._stored.items():
            info = self._checkpoint.tensors.get(stored)
            if info is not None and isinstance(state.get(name), Tensor):
                yield info.alias_of or stored, state[name]


def _assign(tensor: Tensor, value: Tensor, name: str, dtype: str) -> bool:
    """Overwrite a tensor with its rounded values, and return whether they differ."""
    value = value.to(tensor.dtype)
    if tensor.is_floating_point() and not value.isfinite().all():
        raise FinetuneError(
            where=shown(name),
            found=f"values after training that {dtype} cannot hold",
            why="a file never contains NaN or Inf",
            action="Compress with dtype float32 and train that file, or give a smaller learning rate.",
        )
    if torch.equal(tensor, value):
        return False
    tensor.copy_(value)
    return True


def _mpo(weight: MPOWeight) -> MPO:
    return MPO(cores=tuple(core.detach() for core in weight.cores), sites=weight.sites)
