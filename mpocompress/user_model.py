"""The user's own model: imported and run only when asked for, and laid over the tensors of a checkpoint."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mpocompress.alignment import aligned
from mpocompress.errors import ModelError
from mpocompress.kinds import class_kind
from mpocompress.text import listed, shown

UserModel = str | nn.Module | Mapping[str, str | type]
"""A model: `file.py:name` or `package.module:name` of one or of what builds it, itself, or module path -> class."""

_NOT_THEIRS = (__file__, "importlib", str(Path(torch.__file__).parent))
_MOST_SHOWN = 3


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
        model, ran = _built(model), (f"{called} was imported and run.",)
    weights = [name for name, shape in shapes.items() if len(shape) > 1]
    if isinstance(model, nn.Module):
        classes = {path: class_name(module) for path, module in model.named_modules(remove_duplicate=False)}
        own = {name: tuple(tensor.shape) for name, tensor in _tensors(model)}
        found = aligned(weights, own, lambda name, other: shapes[name] == own[other])
        owners = {_module(name): classes.get(_module(other), "") for name, other in found.items()}
    else:
        classes = {path: one if isinstance(one, str) else full_name(one) for path, one in model.items()}
        found = aligned([_module(name) for name in weights], classes, lambda name, other: True)
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


def _built(spec: str) -> nn.Module:
    """Import and run `file.py:name` or `package.module:name`."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise ModelError(
            where=shown(spec),
            found="no name after a colon" if not colon or place else "no file or module before the colon",
            why="a model is named by where it is and what it is called there",
            action="Write file.py:name or package.module:name; the name is that of a model, its class or a function.",
        )
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(sys.stderr):
        found = _run(spec, lambda: _imported(place))
        if not hasattr(found, name):
            raise ModelError(
                where=shown(spec),
                found=f"no {name!r} in {place}",
                why="there is nothing to build the model with",
                action=f"It has {_some([one for one in vars(found) if not one.startswith('_')])}.",
            )
        thing = getattr(found, name)
        model = thing if isinstance(thing, nn.Module) or not callable(thing) else _run(spec, thing)
    if not isinstance(model, nn.Module):
        raise ModelError(
            where=shown(spec),
            found=f"a {type(model).__name__}",
            why="a model is a torch.nn.Module, or what gives one when it is called without arguments",
            action="Write a function that returns the model, and name that.",
        )
    return model


def _imported(place: str) -> ModuleType:
    if not place.endswith(".py"):
        with _first_on_path(Path.cwd()):
            return importlib.import_module(place)
    path = Path(place).resolve()
    name = f"mpocompress_user_{path.stem}"  # its own would hide a library of that name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {place}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    with _first_on_path(path.parent):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have taken it out
            sys.path.remove(str(folder))


def _run(spec: str, call: Callable[[], object]) -> object:
    """Call what the user wrote; whatever it raises is told with its line."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        frames = reversed(traceback.extract_tb(error.__traceback__))
        theirs = (one for one in frames if not any(part in one.filename for part in _NOT_THEIRS))
        line = next((f"{Path(one.filename).name}, line {one.lineno}: " for one in theirs), "")
        raise ModelError(
            where=shown(spec),
            found=shown(f"{line}{type(error).__name__}: {error}"),
            why="the model could not be made",
            action="Mend that, or name a function that takes no arguments.",
        ) from error


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


def full_name(kind: type) -> str:
    """A class with its module, as `class_kind` and `short_class` want it.

    Args:
        kind: the class.

    Returns:
        The name.

    Example:
        >>> full_name(nn.GRU)
        'torch.nn.modules.rnn.GRU'
    """
    return f"{kind.__module__}.{kind.__qualname__}"


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _some(names: Collection[str]) -> str:
    return listed(names, _MOST_SHOWN) or "nothing"
