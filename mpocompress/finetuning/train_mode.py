"""A model set up for training, and restored after it: training mode, gradients, and execution from the cores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from mpocompress.nn.layer import MPOLayer


class TrainMode:
    """Training mode of a model: of all its modules, except those that were in evaluation mode while it was not.

    A batch norm whose statistics the user froze stays frozen.

    Args:
        model: the model as the user gives it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> _ = model[1].eval()
        >>> mode = TrainMode(model)
        >>> _ = model.eval()
        >>> mode.enable()
        >>> [module.training for module in model.modules()]
        [True, True, False]
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [module for module in model.modules() if module.training or not model.training]

    def enable(self) -> None:
        """Set the modules to training mode."""
        for module in self._modules:
            module.training = True


@contextmanager
def training_mode(
    model: nn.Module, teacher: nn.Module | None, parameters: Iterable[nn.Parameter]
) -> Iterator[TrainMode]:
    """Set a model up for training in the block, and its teacher for evaluation; restore both after it.

    Gradients are computed in the block even if the caller disabled them, for the given parameters only. Layers with
    cores run from their cores.

    Args:
        model: the model; it is in evaluation mode at first.
        teacher: the teacher, if there is one.
        parameters: the parameters to train.

    Yields:
        The training mode of the model.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_restored_modes(model, teacher))
        mode = TrainMode(model)
        stack.enter_context(_gradients_of(model, parameters))
        stack.enter_context(execution_from_cores(model))
        model.eval()
        if teacher is not None:
            teacher.eval()
        yield mode


@contextmanager
def execution_from_cores(model: nn.Module) -> Iterator[None]:
    """Run the layers with cores from their cores in the block.

    Training the dense form is rarely faster, and measuring which one is would make two runs differ.

    Args:
        model: the model; it may have no such layers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, MPOLayer)]
    before = [layer.execution for layer in layers]
    for layer in layers:
        layer.execution = "factorised"
    try:
        yield
    finally:
        for layer, execution in zip(layers, before, strict=True):
            layer.execution = execution


@contextmanager
def _restored_modes(*models: nn.Module | None) -> Iterator[None]:
    modes = [(module, module.training) for model in models if model is not None for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _gradients_of(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Compute gradients of these parameters only, and leave none behind."""
    trained = {id(parameter) for parameter in parameters}
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in trained]
    for parameter in frozen:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad = True
        model.zero_grad(set_to_none=True)
