"""Which modules of a model are in training mode while it is trained."""

from __future__ import annotations

from torch import nn


class Modes:
    """Training mode: of the whole model, or, where only a part of it was in evaluation mode, of all but that part.

    A batch norm whose statistics the user froze stays frozen.

    Args:
        model: the model as the user gave it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> _ = model[1].eval()
        >>> modes = Modes(model)
        >>> _ = model.eval()
        >>> modes.train()
        >>> [one.training for one in model.modules()]
        [True, True, False]
    """

    def __init__(self, model: nn.Module) -> None:
        self._trained = [one for one in model.modules() if one.training or not model.training]

    def train(self) -> None:
        """Put them into training mode."""
        for one in self._trained:
            one.training = True
