"""The classes of the layers in the user's own model, by the names of a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

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
class Fitted:
    """The classes of a model, by the module paths of a checkpoint.

    Args:
        classes: module path in the checkpoint -> full name of the class.
        notes: what was run, and what did not fit, a sentence each.
    """

    classes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def fit_model(model: UserModel | None, shapes: Mapping[str, tuple[int, ...]]) -> Fitted:
    """Lay a model over a checkpoint, whatever prefixes either has.

    Args:
        model: the model; a text is imported and run.
        shapes: tensor name -> shape of the checkpoint.

    Returns:
        The classes of all modules whose tensors are in both; empty without a model.

    Raises:
        ModelError: the model cannot be imported or built, is no model, or has nothing in common with the checkpoint.

    Example:
        >>> fit_model(nn.Sequential(nn.GRU(2, 3)), {"module.0.weight_hh_l0": (9, 3)}).classes
        {'module.0': 'torch.nn.modules.rnn.GRU'}
    """
    if model is None:
        return Fitted()
    called = shown(model) if isinstance(model, str) else "the given model"
    ran: tuple[str, ...] = ()
    if isinstance(model, str):
        ran = (import_note(model),)
        model = model_builder(model)()
    weights = [name for name, shape in shapes.items() if len(shape) > 1]
    if isinstance(model, nn.Module):
        classes = {path: class_name(module) for path, module in model.named_modules(remove_duplicate=False)}
        own = {name: tuple(tensor.shape) for name, tensor in _tensors(model)}
        found = align_names(weights, own, lambda name, other: shapes[name] == own[other])
        owners = {_module(name): classes.get(_module(other), "") for name, other in found.items()}
    else:
        classes = {path: one if isinstance(one, str) else full_name(one) for path, one in model.items()}
        found = align_names([_module(name) for name in weights], classes, lambda name, other: True)
        owners = {name: classes[other] for name, other in found.items()}
    if not found:
        raise ModelError(
            where=called,
            found=f"a model with {_some(own if isinstance(model, nn.Module) else classes)}",
            why=f"no weight of the checkpoint has its name and shape; they are {_some(weights)}",
            action="Give the model that the checkpoint was saved from.",
        )
    named = {name for name in weights if name in found or _module(name) in found}
    missing = [name for name in weights if name not in named]
    notes = [*ran]
    if missing:
        notes.append(
            f"{called} has {len(named)} of the {len(weights)} weights of the checkpoint; not {_some(missing)}."
        )
    return Fitted(classes=owners, notes=tuple(notes))


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        yield from ((name, tensor) for name, tensor in tensors if not is_lazy(tensor))


def class_name(module: nn.Module) -> str:
    """The class of a module, or the first of its bases that says what it is.

    Args:
        module: the module.

    Returns:
        The full name.

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
