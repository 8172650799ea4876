"""Errors of this library, with the place, the values found, the reason, and what to do."""

from __future__ import annotations

from mpocompress.text import printable


class MPOCompressError(Exception):
    """Base class of all errors that this library raises.

    The four parts are attributes, so that a caller can format them; `str` joins them as `where: found; why. action`,
    with escape codes in names from a file made visible.

    Args:
        where: the file, layer or argument.
        found: what was found there, including values.
        why: why this is an error.
        action: what the user can do.

    Example:
        >>> print(TargetError(where="max_bond", found="got 0", why="a bond is at least 1", action="Give 1 or more."))
        max_bond: got 0; a bond is at least 1. Give 1 or more.
    """

    __module__ = "mpocompress"

    def __init__(self, *, where: str, found: str, why: str, action: str) -> None:
        super().__init__(printable(f"{where}: {found}; {why}. {action}"))
        self.where = where
        self.found = found
        self.why = why
        self.action = action


class CheckpointError(MPOCompressError):
    """A checkpoint cannot be read: it is missing, damaged, of an unknown format, or has no state dict."""


class FormatError(MPOCompressError):
    """A compressed file is inconsistent: its document and its tensors disagree, or its version is unknown."""


class OutputError(MPOCompressError):
    """An output cannot be written: it exists, is the input, or its folder is not writable."""


class OutputExistsError(OutputError):
    """The output exists, and overwriting was not requested."""


class TargetError(MPOCompressError):
    """A truncation target is invalid, or no choice of bonds meets it."""


class SelectionError(MPOCompressError):
    """A layer pattern matches no layer, or requests something that a layer does not support."""


class ModelError(MPOCompressError):
    """The user's model cannot be imported or built, or does not match the checkpoint."""


class BenchmarkError(MPOCompressError):
    """A benchmark cannot run: invalid sizes, a device that is not available, or no compressed layer."""


class InputsError(BenchmarkError):
    """Inputs for the user's model cannot be made, or the model does not accept them."""


class CalibrationError(MPOCompressError):
    """Calibration inputs cannot be made, the model does not accept them, or a calibration is of other weights."""


class FinetuneError(MPOCompressError):
    """Fine-tuning cannot continue: the model does not accept the data, nothing can be trained, or settings differ."""


class SitesError(MPOCompressError):
    """Site dims do not match the matrix, or no site shape of the requested form exists."""


class DecompositionError(MPOCompressError):
    """A matrix cannot be decomposed: wrong number of dimensions, unsupported dtype, or entries that are not finite."""


class ReportError(MPOCompressError):
    """A report is inconsistent: its parts do not add up."""


class ExecutionError(MPOCompressError):
    """Unknown execution mode."""
