"""The user's model, given as a module, as its name in the user's code, or as the classes of its modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from mpocompress.text import shown
from mpocompress.user.code import model_builder
from mpocompress.user.dense_model import copy_model

UserModel = str | nn.Module | Mapping[str, str | type]
"""A module; `file.py:name` or `package.module:name` of a module or of a function or class that builds it; or module
path -> class."""


def resolve_model(model: UserModel | None) -> tuple[UserModel | None, tuple[str, ...]]:
    """Import and build a model that is given by its name.

    Args:
        model: the model.

    Returns:
        The model, and a note if user code was run; everything but a name is returned unchanged.

    Raises:
        ModelError: it cannot be imported or built, or is not a model.
    """
    return (model_builder(model)(), (import_note(model),)) if isinstance(model, str) else (model, ())


def model_factory(model: str | nn.Module | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a function that gives a new model at every call.

    Args:
        model: a module, which is copied; `file.py:name` or `package.module:name` of a module or of a function or class
            that builds it; or such a function.

    Raises:
        ModelError: it cannot be imported. The function raises it if the model cannot be built or copied.
    """
    if isinstance(model, str):
        return model_builder(model)
    if isinstance(model, nn.Module):
        return lambda: copy_model(model)
    return model


def import_note(spec: str) -> str:
    """Return the note that user code was run."""
    return f"{shown(spec)} was imported and run."
