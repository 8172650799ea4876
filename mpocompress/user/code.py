"""The user's own code, named `file.py:name` or `package.module:name`: imported and run only when asked for."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from mpocompress.errors import CalibrationError, FinetuneError, InputsError, ModelError, MPOCompressError
from mpocompress.text import listed, shown
from mpocompress.user.randomness import Randomness

_NOT_THEIRS = (f"{Path(__file__).parents[1]}{os.sep}", "importlib", "<string>", str(Path(torch.__file__).parent))
_MOST_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Role:
    """What a piece of the user's code is for, in the words of its errors.

    Args:
        error: what is raised.
        named: how it is named.
        missing: why it cannot go on without it.
        failed: why it cannot go on when it raises.
        action: what to do then.
    """

    error: type[MPOCompressError]
    named: str
    missing: str
    failed: str
    action: str


_MODEL = _Role(
    error=ModelError,
    named="a model is named by where it is and what it is called there",
    missing="there is nothing to build the model with",
    failed="the model could not be made",
    action="Mend that, or name a function that takes no arguments.",
)
_INPUTS = _Role(
    error=InputsError,
    named="what makes the inputs is named by where it is and what it is called there",
    missing="there is nothing to make the inputs with",
    failed="the inputs could not be made",
    action="Mend that, or name a function that takes a batch size and a length.",
)
_BATCHES = _Role(
    error=CalibrationError,
    named="calibration batches are named by where they are and what they are called there",
    missing="there is nothing to calibrate with",
    failed="the batches could not be made",
    action="Mend that, or name an iterable of what the model is called with, or a function that gives one.",
)
_DATA = _Role(
    error=FinetuneError,
    named="training data are named by where they are and what they are called there",
    missing="there is nothing to train on",
    failed="the batches could not be made",
    action="Mend that, or name a function that gives an iterable of inputs, or of pairs of inputs and a target.",
)
_SCORE = _Role(
    error=FinetuneError,
    named="a score is named by where it is and what it is called there",
    missing="there is nothing to judge the model with",
    failed="the score could not be computed",
    action="Mend that, or name a function that takes the model and returns a number, larger being better.",
)
_LOSS = _Role(
    error=CalibrationError,
    named="a loss is named by where it is and what it is called there",
    missing="there is nothing to compute the loss with",
    failed="the loss could not be computed",
    action="Mend that, or name a function of the model's output and a target.",
)


def model_builder(spec: str) -> Callable[[], nn.Module]:
    """Import what makes a model, to be called as often as one is wanted.

    Args:
        spec: `file.py:name` or `package.module:name` of a model, its class or a function.

    Returns:
        A function that gives a new model at every call, with the same random numbers at each.

    Raises:
        ModelError: it cannot be imported. The function raises it where the model cannot be made, or is no model.
    """
    thing = _named(spec, _MODEL, "a model, its class or a function")

    def build() -> nn.Module:
        if isinstance(thing, nn.Module):
            return copy.deepcopy(thing)
        with _quietly():
            model = _run(spec, thing, _MODEL) if callable(thing) else thing
        if not isinstance(model, nn.Module):
            raise ModelError(
                where=shown(spec),
                found=f"a {type(model).__name__}",
                why="a model is a torch.nn.Module, or what gives one when it is called without arguments",
                action="Write a function that returns the model, and name that.",
            )
        return model

    return build


def inputs_function(spec: str) -> Callable[[int, int], object]:
    """Import the function that makes inputs for a model.

    Args:
        spec: `file.py:name` or `package.module:name` of a function of a batch size and a length.

    Returns:
        The function.

    Raises:
        InputsError: it cannot be imported, or is no function. The function raises it for whatever the user's raises.
    """
    thing = _named(spec, _INPUTS, "a function")
    if not callable(thing):
        raise InputsError(
            where=shown(spec),
            found=f"a {type(thing).__name__}",
            why="inputs of several sizes are needed",
            action="Name a function that takes a batch size and a length.",
        )

    def make(batch: int, length: int) -> object:
        with _quietly():
            return _run(spec, lambda: thing(batch, length), _INPUTS)

    return make


def calibration_passes(spec: str) -> Callable[[int | None], Iterator[object]]:
    """Import the user's calibration batches; as `data_passes`, but with CalibrationError.

    Args:
        spec: `file.py:name` or `package.module:name` of an iterable, or of a function that returns one.
    """
    return _passes(spec, _BATCHES)


def data_passes(spec: str) -> Callable[[int | None], Iterator[object]]:
    """Import the user's training data, to be gone through as often as is wanted.

    Args:
        spec: `file.py:name` or `package.module:name` of an iterable, or of a function without arguments that gives one.

    Returns:
        A function of a seed that goes through the data anew, from what it draws on; a function of the user's is called
        again for it. Iterating raises FinetuneError for whatever the user's code raises.

    Raises:
        FinetuneError: they cannot be imported; the function raises it where they cannot be made or iterated.
    """
    return _passes(spec, _DATA)


def loss_function(spec: str, error: type[MPOCompressError] = CalibrationError) -> Callable[..., Any]:
    """Import a loss function.

    Args:
        spec: `file.py:name` or `package.module:name` of a function of the model's output and a target.
        error: what is raised.

    Returns:
        The function.

    Raises:
        MPOCompressError: of that kind; it cannot be imported, or is no function.
    """
    role = replace(_LOSS, error=error)
    thing = _named(spec, role, "a function")
    if not callable(thing):
        raise error(where=shown(spec), found=f"a {type(thing).__name__}", why="a loss is computed", action=role.action)
    return thing


def score_function(spec: str) -> Callable[[nn.Module], object]:
    """Import a function that judges a model.

    Args:
        spec: `file.py:name` or `package.module:name` of a function of the model that returns a number.

    Returns:
        The function; it raises FinetuneError for whatever the user's raises.

    Raises:
        FinetuneError: it cannot be imported, or is no function.
    """
    thing = _named(spec, _SCORE, "a function")
    if not callable(thing):
        raise FinetuneError(
            where=shown(spec), found=f"a {type(thing).__name__}", why=_SCORE.missing, action=_SCORE.action
        )

    def score(model: nn.Module) -> object:
        with _quietly():
            return _run(spec, lambda: thing(model), _SCORE)

    return score


def _passes(spec: str, role: _Role) -> Callable[[int | None], Iterator[object]]:
    thing = _named(spec, role, "an iterable of batches, or of a function that gives one")

    def one_pass(seed: int | None) -> Iterator[object]:
        draws = Randomness(seed)
        with _quietly(draws):
            is_function = callable(thing) and not isinstance(thing, Iterable)
            found = _run(spec, thing, role) if callable(thing) and is_function else thing
        if isinstance(found, torch.Tensor | Mapping) or not isinstance(found, Iterable):
            raise role.error(
                where=shown(spec),
                found=f"a {type(found).__name__}",
                why="batches are taken from it one after another",
                action=role.action,
            )
        return _iterated(spec, found, role, draws)

    return one_pass


def _iterated(spec: str, batches: Iterable[object], role: _Role, draws: Randomness) -> Iterator[object]:
    with _quietly(draws):
        iterator = _run(spec, lambda: iter(batches), role)
    end = object()
    while True:
        with _quietly(draws):
            batch = _run(spec, lambda: next(iterator, end), role)  # type: ignore[call-overload]
        if batch is end:
            return
        yield batch


def describe_error(error: BaseException) -> str:
    """What an error in the user's code says, behind the file and line where it was raised.

    Args:
        error: the error, as caught.

    Returns:
        Text for one line of a message.
    """
    frames = reversed(traceback.extract_tb(error.__traceback__))
    theirs = (one for one in frames if not any(part in one.filename for part in _NOT_THEIRS))
    line = next((f"{Path(one.filename).name}, line {one.lineno}: " for one in theirs), "")
    return shown(f"{line}{type(error).__name__}: {error}")


def _named(spec: str, role: _Role, wanted: str) -> object:
    """Import the file or module and take the name from it."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise role.error(
            where=shown(spec),
            found="no name after a colon" if not colon or place else "no file or module before the colon",
            why=role.named,
            action=f"Write file.py:name or package.module:name; the name is that of {wanted}.",
        )
    with _quietly():
        found = _run(spec, lambda: _imported(place), role)
    if not hasattr(found, name):
        raise role.error(
            where=shown(spec),
            found=f"no {name!r} in {place}",
            why=role.missing,
            action=f"It has {_some([one for one in vars(found) if not one.startswith('_')])}.",
        )
    return getattr(found, name)


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


@contextlib.contextmanager
def _quietly(draws: Randomness | None = None) -> Iterator[None]:
    """Run code whose prints go to stderr, and whose random numbers change no others.

    They are the same every time, or go on where those before ended if that is given.
    """
    with (draws or Randomness()).drawing(), contextlib.redirect_stdout(sys.stderr):
        yield


def _run(spec: str, call: Callable[[], object], role: _Role) -> object:
    """Call what the user wrote; whatever it raises is told with its line."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise role.error(where=shown(spec), found=describe_error(error), why=role.failed, action=role.action) from error


def _some(names: list[str]) -> str:
    return listed(names, _MOST_SHOWN) or "nothing"
