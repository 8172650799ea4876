"""Modules that are imported when they are first used.

Reading what a file says about itself must not load torch, which takes seconds. A module that reads metadata and needs
torch for some of its functions declares the torch part like this:

    if TYPE_CHECKING:
        from mpocompress.checkpoint import tensors
    else:
        tensors = Deferred("mpocompress.checkpoint.tensors")

Type checkers and import-linter see an ordinary import. `pyproject.toml` lists every deferred import, as an exception of
the contract that metadata is read without torch.
"""

from __future__ import annotations

from importlib import import_module


class Deferred:
    """A module that is imported when one of its names is first used.

    Args:
        name: full name of the module.

    Example:
        >>> Deferred("math").gcd(4, 6)
        2
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        return getattr(import_module(self._name), attribute)
