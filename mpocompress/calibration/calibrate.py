"""Calibrations read from a file, or measured by running the model on calibration inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from os import PathLike

from torch import nn

from mpocompress.calibration.batches import read_batches, sample_total
from mpocompress.calibration.calibration import Calibration
from mpocompress.calibration.calibration_file import SUFFIX, read_calibration
from mpocompress.calibration.moments import collect
from mpocompress.calibration.options import CalibrateOptions, CalibrationInputs
from mpocompress.calibration.trial_model import TrialModel
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.errors import CalibrationError, FormatError, ModelError
from mpocompress.parallel import Progress
from mpocompress.text import StrPath, shown
from mpocompress.user.code import loss_function
from mpocompress.user.model import UserModel, resolve_model
from mpocompress.user.options import with_keywords


@with_keywords(CalibrateOptions)
def calibrate(
    source: StrPath,
    inputs: CalibrationInputs | str | Iterable[object],
    model: UserModel,
    options: CalibrateOptions,
) -> Calibration:
    """Run a model on calibration inputs once, for use in any number of compressions of its checkpoint.

    Args:
        source: the checkpoint.
        inputs: batches, `file.py:name` or `package.module:name` of them, or `CalibrationInputs`.
        model: the model that the checkpoint was saved from, as a module, or `file.py:name` or `package.module:name` of
            one or of a function that builds it, which is imported and run.
        options: the options.

    Returns:
        The calibration, with the model and its inputs, as an argument of `compress` and `plan`.

    Raises:
        CheckpointError: the source cannot be read.
        ModelError: the model cannot be built, or does not fit the checkpoint.
        CalibrationError: the inputs cannot be read, or the model does not accept them.
    """
    built, ran = resolve_model(model)
    with open_checkpoint(source, key=options.key, allow_pickle=options.allow_pickle) as checkpoint:
        calibration = calibration_for(inputs, built, checkpoint, options.progress)
    return dataclasses.replace(calibration, notes=(*ran, *calibration.notes))


CalibrationSource = Calibration | CalibrationInputs | str | PathLike[str] | Iterable[object]
"""A calibration, the path object of a calibration file, `CalibrationInputs`, or batches or their `file.py:name`."""


def calibration_for(
    source: CalibrationSource,
    model: object,
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> Calibration:
    """Return the calibration of a checkpoint, read or measured.

    Args:
        source: a calibration, the path object of a calibration file, or inputs; a string names code to run.
        model: the user's model; needed to measure.
        checkpoint: the weights, open.
        progress: called with the progress of the work.

    Raises:
        CalibrationError: the inputs cannot be read, or the calibration belongs to other weights.
        ModelError: there is no model to run.
        FormatError: the file is no calibration.
    """
    if isinstance(source, str) and source.endswith(SUFFIX):
        raise CalibrationError(
            where="calibration",
            found=f"the string {shown(repr(source))}",
            why="a string names code to import and run, and a calibration file is passed as a path object",
            action=f"Pass pathlib.Path({shown(repr(source))}).",
        )
    if isinstance(source, PathLike):
        source = read_calibration(source)
    if isinstance(source, Calibration):
        if source.sha256 != checkpoint.sha256():
            raise CalibrationError(
                where="calibration",
                found=f"a calibration that was made with other weights than those of {checkpoint.path.name}",
                why="the inputs of a weight depend on all other weights",
                action="Calibrate again with this checkpoint.",
            )
        _check_shapes(source, checkpoint)
        return source
    inputs = source if isinstance(source, CalibrationInputs) else CalibrationInputs(batches=source)
    if not isinstance(model, nn.Module):
        raise ModelError(
            where="calibration",
            found="no model that can be run",
            why="the inputs of its layers are measured by running it",
            action="Give the model as a module, or name it, or a function that builds it, as file.py:name.",
        )
    return calibrated(inputs, model, checkpoint, progress)


def _check_shapes(calibration: Calibration, checkpoint: Checkpoint) -> None:
    """Refuse moments that do not fit the weights, as in an edited file."""
    for unit in calibration.units:
        shapes = {
            **{name: sorted((unit.rows, columns)) for name, columns in zip(unit.members, unit.columns, strict=True)},
            **({unit.bias: [unit.rows]} if unit.bias else {}),
        }
        for name, shape in shapes.items():
            info = checkpoint.tensors.get(name)
            if info is None or sorted(info.shape) != shape:
                raise FormatError(
                    where="calibration",
                    found=f"moments of {shown(name)} for {' x '.join(map(str, shape))} entries",
                    why="the checkpoint has no tensor with this name and shape",
                    action="The file is damaged or was edited: calibrate again.",
                )


def calibrated(
    inputs: CalibrationInputs, model: nn.Module, checkpoint: Checkpoint, progress: Progress | None = None
) -> Calibration:
    """Run a model on its calibration inputs.

    Args:
        inputs: the inputs.
        model: the model that the checkpoint was saved from; a copy is run.
        checkpoint: its weights, open.
        progress: called with the progress of the work.

    Raises:
        CalibrationError: the inputs cannot be read, or the model does not accept them.
        ModelError: the model does not fit the checkpoint.
    """
    loss = loss_function(inputs.loss) if isinstance(inputs.loss, str) else inputs.loss
    batches = read_batches(inputs.batches, samples=inputs.samples, has_targets=loss is not None)
    trial_model = TrialModel(model, checkpoint, batches, inputs.kind)
    collected = collect(trial_model, loss=loss, progress=progress)
    specs = [spec for spec in (inputs.batches, inputs.loss) if isinstance(spec, str)]
    notes = [f"{shown(spec)} was imported and run." for spec in specs]
    if not batches.is_held_out:
        notes.append("There was only one calibration batch: the divergence is measured on the data it was fitted to.")
    return Calibration(
        sha256=checkpoint.sha256(),
        units=collected.units,
        metrics=collected.metrics,
        uncalibrated=collected.uncalibrated,
        kind=trial_model.measure.kind,
        measure=trial_model.measure.name,
        kind_from=trial_model.measure.kind_from,
        samples=sample_total(batches.learning),
        trial_model=trial_model,
        notes=tuple(notes),
    )
