"""Errors that say where, what was found, why that stops the work, and what to do next."""

from __future__ import annotations

from mpocompress.text import printable


class MPOCompressError(Exception):
    """Base of every error this library raises on purpose.

    The four parts are kept as attributes, so that a caller can show them its own way; `str` joins them into
    `where: found; why. action`, with escape codes from names in a file made visible.

    Args:
        where: the file, layer or argument concerned.
        found: what was found there, values included.
        why: why the work cannot go on.
        action: what to do next.

    Example:
        >>> print(TargetError(where="max_bond", found="got 0", why="a bond is at least 1", action="Give 1 or more."))
        max_bond: got 0; a bond is at least 1. Give 1 or more.
    """

    def __init__(self, *, where: str, found: str, why: str, action: str) -> None:
        super().__init__(printable(f"{where}: {found}; {why}. {action}"))
        self.where = where
        self.found = found
        self.why = why
        self.action = action


class CheckpointError(MPOCompressError):
    """A checkpoint cannot be read: missing, damaged, of an unknown form, or without a state dict."""


class FormatError(MPOCompressError):
    """A compressed file does not hold together: its document and its tensors disagree, or its version is unknown."""


class OutputError(MPOCompressError):
    """An output cannot be written: it exists, it is the input, or the folder does not take it."""


class OutputExistsError(OutputError):
    """The output exists and overwriting was not asked for."""


class TargetError(MPOCompressError):
    """A truncation target is malformed, or no choice of bonds can meet it."""


class SelectionError(MPOCompressError):
    """A layer pattern matches nothing, or asks for what a layer cannot be."""


class ModelError(MPOCompressError):
    """The user's own model cannot be imported or built, or is not the one that a checkpoint was saved from."""


class BenchmarkError(MPOCompressError):
    """A benchmark cannot be made as asked: sizes that mean nothing, a device that is not there, nothing compressed."""


class InputsError(BenchmarkError):
    """Inputs for the user's own model cannot be made, or the model does not take them."""


class CalibrationError(MPOCompressError):
    """Calibration inputs cannot be made, the model does not take them, or what was measured is of other weights."""


class FinetuneError(MPOCompressError):
    """Fine-tuning cannot go on: data the model does not take, nothing to learn from, a run of other settings."""


class SitesError(MPOCompressError):
    """Site dims do not fit the matrix, or no site shape of the wanted form exists."""


class DecompositionError(MPOCompressError):
    """A matrix cannot be decomposed: wrong number of dimensions, dtype, or non-finite entries."""


class ReportError(MPOCompressError):
    """A report contradicts itself: its parts do not add up."""


class ExecutionError(MPOCompressError):
    """A layer is asked to run in a way that there is not."""
