"""Classes of the layers in the user's model, by the names of a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mpocompress.errors import ModelError
from mpocompress.layers.kinds import class_kind, full_name
from mpocompress.text import listed, shown
from mpocompress.user.code import model_builder
from mpocompress.user.model import UserModel, import_note
from mpocompress.user.name_alignment import align_names


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedClasses:
    """The classes of a model, by the module paths of a checkpoint.

    Args:
        classes: module path in the checkpoint -> full name of the class.
        notes: sentences on the code that was run and on weights that did not match.
    """

    classes: Mapping[str, str]
    notes: tuple[str, ...] = ()


def match_classes(model: UserModel, shapes: Mapping[str, tuple[int, ...]]) -> MatchedClasses:
    """Match the modules of a model to a checkpoint, whose names may have another prefix.

    Args:
        model: the model; a text is imported and run.
        shapes: tensor name -> shape of the checkpoint.

    Returns:
        The classes of all modules whose tensors are in both.

    Raises:
        ModelError: the model cannot be imported or built, is no model, or has nothing in common with the checkpoint.

    Example:
        >>> match_classes(nn.Sequential(nn.GRU(2, 3)), {"module.0.weight_hh_l0": (9, 3)}).classes
        {'module.0': 'torch.nn.modules.rnn.GRU'}
    """
    shown_model = shown(model) if isinstance(model, str) else "the given model"
    notes: list[str] = []
    if isinstance(model, str):
        notes.append(import_note(model))
        model = model_builder(model)()
    weights = [name for name, shape in shapes.items() if len(shape) > 1]
    if isinstance(model, nn.Module):
        classes = {path: class_name(module) for path, module in model.named_modules(remove_duplicate=False)}
        own = {name: tuple(tensor.shape) for name, tensor in _tensors(model)}
        matches = align_names(weights, own, lambda name, other: shapes[name] == own[other])
        matched = {_module(name): classes.get(_module(other), "") for name, other in matches.items()}
        names: Collection[str] = own
    else:
        classes = {path: kind if isinstance(kind, str) else full_name(kind) for path, kind in model.items()}
        matches = align_names([_module(name) for name in weights], classes, lambda name, other: True)
        matched = {name: classes[other] for name, other in matches.items()}
        names = classes
    if not matches:
        raise ModelError(
            where=shown_model,
            found=f"a model with {_some(names)}",
            why=f"no weight of the checkpoint has its name and shape; they are {_some(weights)}",
            action="Give the model that the checkpoint was saved from.",
        )
    missing = [name for name in weights if name not in matches and _module(name) not in matches]
    if missing:
        notes.append(
            f"{shown_model} has {len(weights) - len(missing)} of the {len(weights)} weights of the checkpoint;"
            f" not {_some(missing)}."
        )
    return MatchedClasses(classes=matched, notes=tuple(notes))


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        yield from ((name, tensor) for name, tensor in tensors if not is_lazy(tensor))


def class_name(module: nn.Module) -> str:
    """Return the full name of the class of a module, or of its first base of a known kind.

    Example:
        >>> class_name(type("Mine", (nn.LSTM,), {})(2, 3))
        'torch.nn.modules.rnn.LSTM'
    """
    names = [full_name(kind) for kind in type(module).__mro__]
    return next((name for name in names if class_kind(name) is not None), names[0])


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _some(names: Collection[str]) -> str:
    return listed(names) or "nothing"
