"""AdamW with a learning rate for every tensor, in proportion to the size of its entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mpocompress.errors import FinetuneError
from mpocompress.finetuning.options import Trained
from mpocompress.nn import MPOWeight

LARGEST_NORM = 1.0
"""Gradients are scaled down to this norm."""
WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.98)
LEAST_RMS = 1e-2
"""Smallest root mean square that learning rates are relative to, for tensors of tiny entries such as zero biases."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""State of AdamW for every parameter, besides its number of steps."""


def trained_parameters(model: nn.Module, train: Trained) -> dict[str, nn.Parameter]:
    """Return the parameters to train by name, each once; frozen ones are left out.

    Args:
        model: the model.
        train: which parameters.

    Raises:
        FinetuneError: there are none.
    """
    cores = {id(core) for module in model.modules() if isinstance(module, MPOWeight) for core in module.cores}
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point() and (train == "all" or id(parameter) in cores)
    }
    if not parameters:
        raise FinetuneError(
            where=type(model).__name__,
            found="no cores to train" if train == "cores" and not cores else "no parameter that requires a gradient",
            why="training would change nothing",
            action="Train all parameters, load a compressed file into the model first, or unfreeze some.",
        )
    return parameters


class Optimizer:
    """AdamW over the trained parameters.

    Args:
        parameters: name -> parameter.
        lr: the largest learning rate; None to use one per tensor, relative to the root mean square of its entries now.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], lr: float | None) -> None:
        self._parameters, self._lr = list(parameters.values()), lr
        self._sizes = [_rms(parameter) for parameter in self._parameters]
        groups = [{"params": [parameter]} for parameter in self._parameters]
        self._adamw = torch.optim.AdamW(groups, betas=BETAS, weight_decay=WEIGHT_DECAY)

    def zero_grad(self) -> None:
        """Remove the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def clip(self) -> float:
        """Scale the gradients down to `LARGEST_NORM`, and return their norm before."""
        return float(nn.utils.clip_grad_norm_(self._parameters, LARGEST_NORM))

    def step(self, relative_learning_rate: float, *, cut: float, share: float) -> None:
        """Change the parameters.

        Args:
            relative_learning_rate: largest learning rate relative to the entries of a tensor; not used with `lr`.
            cut: factor on the largest learning rate.
            share: share of it at this point of the schedule.
        """
        for group, size in zip(self._adamw.param_groups, self._sizes, strict=True):
            largest = self._lr if self._lr is not None else relative_learning_rate * size
            group["lr"] = largest * cut * share
        self._adamw.step()

    @property
    def moved(self) -> tuple[int, ...]:
        """Numbers of the parameters that were changed so far; only these have a state."""
        return tuple(self._adamw.state_dict()["state"])

    def state(self) -> dict[str, Tensor]:
        """Return the state as named tensors, `<number of the parameter>.<name>`."""
        states = self._adamw.state_dict()["state"]
        return {f"{number}.{name}": value for number, state in states.items() for name, value in state.items()}

    def expected_state(self, moved: Sequence[int]) -> dict[str, Tensor]:
        """Return tensors with the names, shapes and dtypes of the state after these parameters were changed."""
        return {
            f"{number}.{name}": parameter if name in MOMENTS else torch.zeros(())
            for number, parameter in enumerate(self._parameters)
            for name in ("step", *MOMENTS)
            if number in moved
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state that `state` returned, checked against `expected_state`."""
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            number, _, key = name.partition(".")
            states.setdefault(int(number), {})[key] = value
        self._adamw.load_state_dict({"state": states, "param_groups": self._adamw.state_dict()["param_groups"]})


def _rms(tensor: Tensor) -> float:
    """Return the root mean square of the entries of a tensor, at least `LEAST_RMS`."""
    rms = float(tensor.detach().float().square().mean().sqrt()) if tensor.numel() else 0.0
    return max(rms, LEAST_RMS)
