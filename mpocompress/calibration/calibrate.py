"""From what the user gave to a calibration: read from a file, or made by running the model over its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from os import PathLike

from torch import nn

from mpocompress.calibration.batches import gathered
from mpocompress.calibration.calibration import Calibration
from mpocompress.calibration.file import SUFFIX, read_calibration
from mpocompress.calibration.moments import collect
from mpocompress.calibration.options import CalibrateOptions, CalibrationInputs
from mpocompress.calibration.rig import Rig
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.errors import CalibrationError, FormatError, ModelError
from mpocompress.jobs import Progress
from mpocompress.text import StrPath, shown
from mpocompress.user.code import loss_function
from mpocompress.user.model import UserModel, runnable
from mpocompress.user.options import with_keywords


@with_keywords(CalibrateOptions)
def calibrate(
    source: StrPath,
    inputs: CalibrationInputs | str | Iterable[object],
    model: UserModel,
    options: CalibrateOptions,
) -> Calibration:
    """Run a model on calibration inputs, once for many compressions of its checkpoint.

    Args:
        source: the checkpoint.
        inputs: what the model is called with: batches, `file.py:name` or `package.module:name` of them, or
            `CalibrationInputs`.
        model: the model that the checkpoint was saved from, as a module, or `file.py:name` or `package.module:name` of
            one or of what builds it, which is imported and run.
        options: the fields of `CalibrateOptions`.

    Returns:
        The calibration, with the model and its inputs, to be given to `compress` and `plan`.

    Raises:
        CheckpointError: the source cannot be read.
        ModelError: the model cannot be built, or is another one.
        CalibrationError: the inputs cannot be made, or the model does not take them.
    """
    built, ran = runnable(model)
    with open_checkpoint(source, key=options.key, allow_pickle=options.allow_pickle) as checkpoint:
        calibration = calibration_for(inputs, built, checkpoint, options.progress)
    return dataclasses.replace(calibration, notes=(*ran, *calibration.notes))


CalibrationSource = Calibration | CalibrationInputs | str | PathLike[str] | Iterable[object]
"""A calibration, the path object of a file with one, `CalibrationInputs`, batches, or a string that names these."""


def calibration_for(
    source: CalibrationSource,
    model: object,
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> Calibration:
    """The calibration of a checkpoint, made or read.

    Args:
        source: a calibration, the path object of a file with one, or inputs; a string names code to run.
        model: the user's model, where there is one.
        checkpoint: the weights, open.
        progress: told how far the work is.

    Returns:
        The calibration.

    Raises:
        CalibrationError: it cannot be made, or is of other weights.
        ModelError: there is no model to run.
        FormatError: a file that holds no calibration.
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
                found=f"one of other weights than those of {checkpoint.path.name}",
                why="what a weight is multiplied with depends on all weights",
                action="Calibrate again with this checkpoint.",
            )
        _check_shapes(source, checkpoint)
        return source
    inputs = source if isinstance(source, CalibrationInputs) else CalibrationInputs(batches=source)
    if not isinstance(model, nn.Module):
        raise ModelError(
            where="calibration",
            found="no model that can be run",
            why="inputs of its layers are seen by running it",
            action="Give the model as a module, or as file.py:name of one or of what builds it.",
        )
    return calibrated(inputs, model, checkpoint, progress)


def _check_shapes(calibration: Calibration, checkpoint: Checkpoint) -> None:
    """Refuse moments that do not fit the weights, as an edited file may have them."""
    for unit in calibration.units:
        wanted = {
            **{name: sorted((unit.rows, columns)) for name, columns in zip(unit.members, unit.columns, strict=True)},
            **({unit.bias: [unit.rows]} if unit.bias else {}),
        }
        for name, shape in wanted.items():
            info = checkpoint.tensors.get(name)
            if info is None or sorted(info.shape) != shape:
                raise FormatError(
                    where="calibration",
                    found=f"moments of {shown(name)} for {' x '.join(map(str, shape))} entries",
                    why="the checkpoint has no tensor of this name and shape",
                    action="The file is damaged or was edited: calibrate again.",
                )


def calibrated(
    inputs: CalibrationInputs, model: nn.Module, checkpoint: Checkpoint, progress: Progress | None = None
) -> Calibration:
    """Run a model over its calibration inputs.

    Args:
        inputs: the inputs.
        model: the model that the checkpoint was saved from; it is copied.
        checkpoint: its weights, open.
        progress: told how far the work is.

    Returns:
        What was measured.

    Raises:
        CalibrationError: the batches cannot be made, or the model does not take them.
        ModelError: the model is another one.
    """
    loss = loss_function(inputs.loss) if isinstance(inputs.loss, str) else inputs.loss
    batches = gathered(inputs.batches, samples=inputs.samples, has_targets=loss is not None)
    rig = Rig(model, checkpoint, batches, inputs.kind)
    found = collect(rig, loss=loss, progress=progress)
    ran = [f"{shown(one)} was imported and run." for one in (inputs.batches, inputs.loss) if isinstance(one, str)]
    if not batches.is_held_out:
        ran.append("There was one calibration batch only, so the divergence is measured on what was learnt from.")
    return Calibration(
        sha256=checkpoint.sha256(),
        units=found.units,
        metrics=found.metrics,
        left_out=found.left_out,
        kind=rig.measure.kind,
        measure=rig.measure.words,
        said=rig.measure.said,
        samples=batches.count(batches.learning),
        rig=rig,
        notes=tuple(ran),
    )
