"""Set-up of a run: the parts of a trainer, built from the models, the data and the options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mpocompress.errors import FinetuneError
from mpocompress.finetuning.data import TrainingData
from mpocompress.finetuning.distributed import Team, join_team
from mpocompress.finetuning.evaluation import Evaluator
from mpocompress.finetuning.objective import Objective, choose_objective
from mpocompress.finetuning.optimizer import trained_parameters
from mpocompress.finetuning.options import RunOptions, TrainingOptions
from mpocompress.finetuning.precision import MatmulDtypes
from mpocompress.finetuning.precision_trials import PrecisionTrials
from mpocompress.finetuning.recurrent_state import StatefulRNN
from mpocompress.finetuning.resume import SnapshotOptions, name_of, run_settings
from mpocompress.finetuning.self_generated import GeneratedTexts, SelfGenerated
from mpocompress.finetuning.snapshot import Snapshot
from mpocompress.finetuning.train_mode import TrainMode, training_mode
from mpocompress.user.code import loss_function, score_function


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunSetup:
    """Everything that a trainer works with.

    Args:
        model: the model.
        wrapped: the model as it is called in a step; in several processes, its gradients are averaged over them.
        teacher: the teacher; None to train on targets alone.
        parameters: name -> parameter to train.
        device: device of the models.
        team: the processes that train together.
        mode: training mode of the model.
        stateful: hooks of the models if states are carried from batch to batch.
        data: the training data.
        objective: the training loss.
        evaluator: evaluates the model.
        dtypes: dtypes of the matrix products.
        options: the options of the run.
        batches_per_step: batches of a step, over all processes.
        settings: settings that a resumed run must share.
        snapshot: file that the run is stored in; None to store nothing.
        resumed: the run to resume; None to start a new one.
    """

    model: nn.Module
    wrapped: nn.Module
    teacher: nn.Module | None
    parameters: Mapping[str, nn.Parameter]
    device: torch.device
    team: Team
    mode: TrainMode
    stateful: Sequence[StatefulRNN]
    data: TrainingData
    objective: Objective
    evaluator: Evaluator
    dtypes: MatmulDtypes
    options: RunOptions
    batches_per_step: int
    settings: Mapping[str, str]
    snapshot: Path | None
    resumed: Snapshot | None


@contextmanager
def set_up(
    model: nn.Module,
    teacher: nn.Module | None,
    data: object,
    options: RunOptions,
    *,
    snapshot: SnapshotOptions,
    teacher_name: str,
) -> Iterator[RunSetup]:
    """Set a run up in the block; after it, the models are as before but for the weights.

    Args:
        model: the model.
        teacher: the teacher; None to train on targets alone.
        data: the training data.
        options: the options of the run.
        snapshot: where the run is stored, and whether it is resumed from there.
        teacher_name: name of the teacher, to recognise the same run.

    Raises:
        FinetuneError: the models, the data and the options do not fit each other.
        CheckpointError: there is no run to resume.
        FormatError: the snapshot is damaged.
    """
    device = common_device(model, teacher)
    parameters = trained_parameters(model, options.train)
    score = score_function(options.evaluate) if isinstance(options.evaluate, str) else options.evaluate
    loss = loss_function(options.loss, FinetuneError) if isinstance(options.loss, str) else options.loss
    data_name, kind = name_of(data), options.kind
    with ExitStack() as stack:
        team = join_team(device)
        mode = stack.enter_context(training_mode(model, teacher, parameters.values()))
        count = _batches_per_step(options, team)
        if isinstance(data, SelfGenerated):
            data, kind = _generated(data, teacher, options, device), kind or "classification"
        training = TrainingData(data, held_out=options.held_out, seed=options.seed, consecutive=options.carry_state)
        first = training.first
        objective = choose_objective(
            model, teacher, first.to(device), loss=loss, share=options.teacher_share, kind=kind
        )
        models = [each for each in (model, teacher) if each is not None]
        stateful = [StatefulRNN(each) for each in models] if options.carry_state else []
        for hooks in stateful:
            stack.callback(hooks.remove)
        team.broadcast_tensors([*model.parameters(), *model.buffers()])
        settings = {
            **run_settings(options),
            "data": data_name,
            "teacher": teacher_name,
            "batches_per_step": str(count),
            **snapshot.inputs,
        }
        resumed = snapshot.read(settings)
        mode.enable()
        autotuner = PrecisionTrials(model, teacher, objective, first, stateful, device)
        dtypes = team.broadcast(
            lambda: autotuner.fastest(options.precision) if resumed is None else resumed.header.dtypes
        )
        has_unused = team.size > 1 and autotuner.has_unused(parameters.values(), dtypes.model)
        yield RunSetup(
            model=model,
            wrapped=team.wrap(model, has_unused=team.all_reduce_sum(float(has_unused)) > 0),
            teacher=teacher,
            parameters=parameters,
            device=device,
            team=team,
            mode=mode,
            stateful=stateful,
            data=training,
            objective=objective,
            evaluator=Evaluator(
                model,
                teacher=teacher,
                objective=objective,
                held_out=training.held_out,
                score=score,
                stateful=stateful,
                seed=options.seed,
                device=device,
            ),
            dtypes=dtypes,
            options=options,
            batches_per_step=count,
            settings=settings,
            snapshot=snapshot.path,
            resumed=resumed,
        )


def common_device(model: nn.Module, teacher: nn.Module | None) -> torch.device:
    """Return the device of both models.

    Raises:
        FinetuneError: the teacher shares parameters with the model, or they are on several devices.
    """
    trained = {id(parameter) for parameter in model.parameters()}
    if teacher is not None and any(id(parameter) in trained for parameter in teacher.parameters()):
        raise FinetuneError(
            where="teacher",
            found="the model to train" if teacher is model else "parameters of the model to train",
            why="the teacher would change with every step",
            action="Give the original model, which `compress_module` does not change.",
        )
    models = [each for each in (model, teacher) if each is not None]
    devices = {str(tensor.device) for each in models for tensor in (*each.parameters(), *each.buffers())}
    if len(devices) > 1:
        raise FinetuneError(
            where="model and teacher",
            found=f"parameters on {', '.join(sorted(devices))}",
            why="both are called with the same batches",
            action="Move both to one device.",
        )
    return torch.device(next(iter(devices), "cpu"))


def _batches_per_step(options: TrainingOptions, team: Team) -> int:
    """Return the number of batches of every step, over all processes."""
    count = options.batches_per_step or team.size
    if count % team.size:
        raise FinetuneError(
            where="batches_per_step",
            found=f"got {count} for {team.size} processes",
            why="every process takes the same number of batches in a step",
            action=f"Give a multiple of {team.size}.",
        )
    if options.carry_state and team.size > 1:
        raise FinetuneError(
            where="carry_state",
            found=f"{team.size} processes",
            why="the state of a batch is needed by the next one, which another process has",
            action="Train in one process.",
        )
    return count


def _generated(
    settings: SelfGenerated, teacher: nn.Module | None, options: TrainingOptions, device: torch.device
) -> GeneratedTexts:
    """Return the batches that the teacher generates."""
    if teacher is None:
        raise FinetuneError(
            where="generated texts",
            found="no teacher",
            why="the teacher generates them",
            action="Give the original model as the teacher, or data.",
        )
    if options.carry_state:
        raise FinetuneError(
            where="generated texts",
            found="carry_state",
            why="every text starts without a state",
            action="Leave carry_state out.",
        )
    return GeneratedTexts(teacher, settings, seed=options.seed, device=device)
