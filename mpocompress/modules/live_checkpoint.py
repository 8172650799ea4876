"""Open a model in memory as a checkpoint, with the class of every layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.in_memory import open_state
from mpocompress.errors import ModelError
from mpocompress.layers.model_classes import class_name
from mpocompress.text import shown
from mpocompress.user.name_alignment import strip_wrappers


def live_checkpoint(model: nn.Module) -> Checkpoint:
    """Return the state dict of a model as an open checkpoint.

    Args:
        model: the model; its tensors are not copied.

    Returns:
        The checkpoint, with the name of the model's class. Names are those without what torch.compile adds.

    Raises:
        ModelError: a lazy layer that was never run.
        CheckpointError: a tensor that no file can hold.

    Example:
        >>> live_checkpoint(nn.LSTM(4, 8)).classes
        {'': 'torch.nn.modules.rnn.LSTM'}
    """
    state = {strip_wrappers(name): value for name, value in model.state_dict().items()}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    lazy = next((name for name, tensor in tensors.items() if is_lazy(tensor)), None)
    if lazy is not None:
        raise ModelError(
            where=shown(lazy),
            found="a parameter without a size",
            why="its layer is lazy and was never run",
            action="Run the model once, or load its weights.",
        )
    paths = model.named_modules(remove_duplicate=False)
    return open_state(
        tensors,
        name=type(model).__name__,
        classes={strip_wrappers(path): class_name(module) for path, module in paths},
        entries={name: value for name, value in state.items() if name not in tensors},
    )
