"""Import and run the user's code, named as `file.py:name` or `package.module:name`."""

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

_LIBRARY_PATHS = (f"{Path(__file__).parents[1]}{os.sep}", "importlib", "<string>", str(Path(torch.__file__).parent))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Role:
    """The purpose of a piece of user code, as text for its errors.

    Args:
        error: class of the errors.
        named: what the name refers to.
        missing: why the name is needed.
        failed: what failed if the code raises an error.
        alternative: what to name instead.
    """

    error: type[MPOCompressError]
    named: str
    missing: str
    failed: str
    alternative: str

    @property
    def action(self) -> str:
        """What to do if the code fails."""
        return f"Fix the error above, or name {self.alternative}."


_MODEL = _Role(
    error=ModelError,
    named="a model, its class or a function",
    missing="a model is needed",
    failed="the model could not be built",
    alternative="a function without arguments",
)
_INPUTS = _Role(
    error=InputsError,
    named="a function",
    missing="a function that returns the inputs is needed",
    failed="the inputs could not be made",
    alternative="a function of a batch size and a length",
)
_BATCHES = _Role(
    error=CalibrationError,
    named="an iterable of batches, or of a function that returns one",
    missing="calibration batches are needed",
    failed="the batches could not be made",
    alternative="an iterable of model inputs, or a function that returns one",
)
_DATA = _Role(
    error=FinetuneError,
    named="an iterable of batches, or of a function that returns one",
    missing="training data are needed",
    failed="the batches could not be made",
    alternative="a function that returns an iterable of model inputs, or of pairs of inputs and a target",
)
_SCORE = _Role(
    error=FinetuneError,
    named="a function",
    missing="a function that evaluates the model is needed",
    failed="the score could not be computed",
    alternative="a function of the model that returns a number; higher is better",
)
_LOSS = _Role(
    error=CalibrationError,
    named="a function",
    missing="a loss function is needed",
    failed="the loss could not be computed",
    alternative="a function of the model's output and a target",
)


def model_builder(spec: str) -> Callable[[], nn.Module]:
    """Import the user's model and return a function that builds a new one at every call.

    Args:
        spec: `file.py:name` or `package.module:name` of a model, its class or a function without arguments.

    Returns:
        The function; every call draws the same random numbers.

    Raises:
        ModelError: it cannot be imported. The function raises it if the model cannot be built, or is not a model.
    """
    named = _import_name(spec, _MODEL)

    def build() -> nn.Module:
        if isinstance(named, nn.Module):
            return copy.deepcopy(named)
        with _isolated():
            model = _run(spec, named, _MODEL) if callable(named) else named
        if not isinstance(model, nn.Module):
            raise ModelError(
                where=shown(spec),
                found=f"a {type(model).__name__}",
                why="a model is a torch.nn.Module, or a class or function without arguments that builds one",
                action="Write a function that returns the model, and name that function.",
            )
        return model

    return build


def inputs_function(spec: str) -> Callable[[int, int], object]:
    """Import the user's function that makes inputs for a model.

    Args:
        spec: `file.py:name` or `package.module:name` of a function of a batch size and a length.

    Returns:
        The function; it raises InputsError for any error of the user's code.

    Raises:
        InputsError: it cannot be imported, or is not a function.
    """
    named = _import_name(spec, _INPUTS)
    if not callable(named):
        raise InputsError(
            where=shown(spec),
            found=f"a {type(named).__name__}",
            why="inputs of several sizes are needed",
            action=f"Name {_INPUTS.alternative}.",
        )

    def make(batch: int, length: int) -> object:
        with _isolated():
            return _run(spec, lambda: named(batch, length), _INPUTS)

    return make


def calibration_passes(spec: str) -> Callable[[int | None], Iterator[object]]:
    """Import the user's calibration batches; as `data_passes`, but with CalibrationError.

    Args:
        spec: `file.py:name` or `package.module:name` of an iterable, or of a function that returns one.
    """
    return _passes(spec, _BATCHES)


def data_passes(spec: str) -> Callable[[int | None], Iterator[object]]:
    """Import the user's training data.

    Args:
        spec: `file.py:name` or `package.module:name` of an iterable, or of a function without arguments that returns
            one.

    Returns:
        A function of a seed that starts a new pass over the data, which draws random numbers from that seed; a function
        of the user is called again for every pass. Iterating raises FinetuneError for any error of the user's code.

    Raises:
        FinetuneError: they cannot be imported. The function raises it if they cannot be made, or are not iterable.
    """
    return _passes(spec, _DATA)


def loss_function(spec: str, error: type[MPOCompressError] = CalibrationError) -> Callable[..., Any]:
    """Import the user's loss function.

    Args:
        spec: `file.py:name` or `package.module:name` of a function of the model's output and a target.
        error: class of the error to raise.

    Raises:
        MPOCompressError: of that class; the function cannot be imported, or is not a function.
    """
    role = replace(_LOSS, error=error)
    named = _import_name(spec, role)
    if not callable(named):
        raise error(where=shown(spec), found=f"a {type(named).__name__}", why=role.missing, action=role.action)
    return named


def score_function(spec: str) -> Callable[[nn.Module], object]:
    """Import the user's function that evaluates a model.

    Args:
        spec: `file.py:name` or `package.module:name` of a function of the model that returns a number.

    Returns:
        The function; it raises FinetuneError for any error of the user's code.

    Raises:
        FinetuneError: it cannot be imported, or is not a function.
    """
    named = _import_name(spec, _SCORE)
    if not callable(named):
        raise FinetuneError(
            where=shown(spec), found=f"a {type(named).__name__}", why=_SCORE.missing, action=_SCORE.action
        )

    def score(model: nn.Module) -> object:
        with _isolated():
            return _run(spec, lambda: named(model), _SCORE)

    return score


def describe_error(error: BaseException) -> str:
    """Return the type and text of an error of the user's code, after the file and line that raised it.

    Args:
        error: the error, as caught.
    """
    frames = reversed(traceback.extract_tb(error.__traceback__))
    users = (frame for frame in frames if not any(part in frame.filename for part in _LIBRARY_PATHS))
    line = next((f"{Path(frame.filename).name}, line {frame.lineno}: " for frame in users), "")
    return shown(f"{line}{type(error).__name__}: {error}")


def _passes(spec: str, role: _Role) -> Callable[[int | None], Iterator[object]]:
    named = _import_name(spec, role)

    def one_pass(seed: int | None) -> Iterator[object]:
        randomness = Randomness(seed)
        is_function = callable(named) and not isinstance(named, Iterable)
        with _isolated(randomness):
            batches = _run(spec, named, role) if callable(named) and is_function else named
        if isinstance(batches, torch.Tensor | Mapping) or not isinstance(batches, Iterable):
            raise role.error(
                where=shown(spec),
                found=f"a {type(batches).__name__}",
                why="an iterable of batches is needed",
                action=role.action,
            )
        return _iterate(spec, batches, role, randomness)

    return one_pass


def _iterate(spec: str, batches: Iterable[object], role: _Role, randomness: Randomness) -> Iterator[object]:
    with _isolated(randomness):
        iterator = _run(spec, lambda: iter(batches), role)
    end = object()
    while True:
        with _isolated(randomness):
            batch = _run(spec, lambda: next(iterator, end), role)  # type: ignore[call-overload]
        if batch is end:
            return
        yield batch


def _import_name(spec: str, role: _Role) -> object:
    """Import the file or module of a spec, and return the object that it names."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise role.error(
            where=shown(spec),
            found="no name after a colon" if not colon or place else "no file or module before the colon",
            why=role.missing,
            action=f"Write file.py:name or package.module:name, with the name of {role.named}.",
        )
    with _isolated():
        module = _run(spec, lambda: _import_module(place), role)
    if not hasattr(module, name):
        names = [public for public in vars(module) if not public.startswith("_")]
        raise role.error(
            where=shown(spec),
            found=f"no {name!r} in {place}",
            why=role.missing,
            action=f"Use one of its names: {listed(names)}." if names else "It has no public names: check the file.",
        )
    return getattr(module, name)


def _import_module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        with _first_on_path(Path.cwd()):
            return importlib.import_module(place)
    path = Path(place).resolve()
    name = f"mpocompress_user_{path.stem}"  # its own name could hide a library
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
        with contextlib.suppress(ValueError):  # the user's code may have removed it
            sys.path.remove(str(folder))


@contextlib.contextmanager
def _isolated(randomness: Randomness | None = None) -> Iterator[None]:
    """Run user code with stdout sent to stderr and with random numbers of its own.

    The random numbers continue `randomness` if it is given; otherwise they start at the current global state, which
    does not change.
    """
    with (randomness or Randomness()).drawing(), contextlib.redirect_stdout(sys.stderr):
        yield


def _run(spec: str, call: Callable[[], object], role: _Role) -> object:
    """Call user code; report an exception with the line that raised it."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise role.error(where=shown(spec), found=describe_error(error), why=role.failed, action=role.action) from error
