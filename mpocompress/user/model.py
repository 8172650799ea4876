"""The user's own model laid over the tensors of a checkpoint; one that is named as text is imported and run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mpocompress.text import shown
from mpocompress.user.code import model_builder

UserModel = str | nn.Module | Mapping[str, str | type]
"""A model: `file.py:name` or `package.module:name` of one or of what builds it, itself, or module path -> class."""


def runnable(model: UserModel | None) -> tuple[UserModel | None, tuple[str, ...]]:
    """A model that can be run, where what was given names one.

    Args:
        model: the model; a text is imported and run.

    Returns:
        The model, and what was run, a sentence each; anything but a text comes back as it is.

    Raises:
        ModelError: it cannot be imported or built, or is no model.
    """
    return (model_builder(model)(), (_ran(model),)) if isinstance(model, str) else (model, ())


def _ran(spec: str) -> str:
    return f"{shown(spec)} was imported and run."
