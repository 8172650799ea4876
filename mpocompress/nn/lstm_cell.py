"""An LSTM cell whose weights are matrix product operators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mpocompress.mpo.tracing import is_recorded
from mpocompress.nn.call_checks import check_dtypes, needs_gradients
from mpocompress.nn.direction import DirectionWeights, LayerWeight, replace_weights, weights_of
from mpocompress.nn.execution import Execution, checked, in_force
from mpocompress.nn.layer import MPOLayer
from mpocompress.nn.level import LevelRun
from mpocompress.nn.packed import Rows, State
from mpocompress.nn.replay import replay_key
from mpocompress.nn.weight import MPOWeight


class MPOLSTMCell(MPOLayer):
    """An LSTM cell whose weights are stored as cores; it accepts the arguments of `torch.nn.LSTMCell`.

    Args:
        input_size: features of an input.
        hidden_size: size of the state.
        weights: name -> weight or bias, with the names of `torch.nn.LSTMCell`; `weight_joint` replaces `weight_ih` and
            `weight_hh` for a joint matrix.
        execution: as for `MPOLSTM`.

    Raises:
        ModelError: a weight is missing, given twice, or of another shape.
        ExecutionError: unknown execution mode.

    Example:
        >>> import mpocompress
        >>> cell = nn.LSTMCell(64, 64)
        >>> mpo = mpocompress.decompose(cell.weight_hh, truncation=mpocompress.Truncation(max_bond=8))
        >>> h, c = MPOLSTMCell.replacing(cell, {"weight_hh": MPOWeight(mpo)})(torch.randn(2, 64))
        >>> h.shape
        torch.Size([2, 64])
    """

    __module__ = "mpocompress"

    def __init__(
        self, input_size: int, hidden_size: int, *, weights: Mapping[str, LayerWeight], execution: Execution = "auto"
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.execution = input_size, hidden_size, checked(execution)
        for name, weight in weights.items():
            setattr(self, name, weight if isinstance(weight, MPOWeight | nn.Parameter) else nn.Parameter(weight))
        self.bias = "bias_ih" in weights
        self._weights()  # raises an error if weights do not match

    @staticmethod
    def replacing(
        layer: nn.LSTMCell, weights: Mapping[str, MPOWeight], *, execution: Execution = "auto"
    ) -> MPOLSTMCell:
        """Make an MPO cell from a dense one.

        Args:
            layer: the dense cell; it is not changed. Weights that stay dense are shared with it.
            weights: name -> MPO weight, as for the class.
            execution: as for the class.

        Returns:
            The new cell, in training mode if `layer` is.

        Raises:
            ModelError: a weight of a name or shape that the cell does not have.
        """
        new = MPOLSTMCell(
            layer.input_size, layer.hidden_size, weights=replace_weights(layer, weights), execution=execution
        )
        new.train(layer.training)
        return new

    def forward(self, input: Tensor, hx: State | None = None) -> State:  # noqa: A002
        """Run one step.

        Args:
            input: shape (batch, input_size), or (input_size,).
            hx: (h, c) before the step, of shape (batch, hidden_size) or (hidden_size,); by default zeros.

        Returns:
            (h, c) after it.

        Raises:
            RuntimeError: an input or a state of the wrong shape; torch's own message.
            ValueError: an input of the wrong number of dimensions.
        """
        # A small cell takes twenty microseconds: a step that has run before needs no other checks.
        cache = self.__dict__["_cache"]
        if cache is not None and hx is not None and not (torch.is_grad_enabled() or is_recorded()):
            step = cache.values.get(replay_key(input.shape, input.dtype, hx))
            if step is not None and cache.is_current() and not torch.is_autocast_enabled(step.device_type):
                state: State = step(input, *hx)
                return state
        if not self._is_valid(input, hx):
            self._raise_error(input, hx)
        if input.dim() == 1:
            h, c = self._in_precision(input[None], None if hx is None else (hx[0][None], hx[1][None]))
            return h[0], c[0]
        return self._in_precision(input, hx)

    def extra_repr(self) -> str:
        """Return sizes as torch does, and the execution mode; sites and bonds are shown with the weights."""
        bias = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}, execution={self.execution}"

    def _in_precision(self, x: Tensor, hx: State | None) -> State:
        """Run in the dtype of the weights: autocast does not affect torch's cell either."""
        device, dtype = x.device.type, x.dtype if hx is None else hx[1].dtype
        if not torch.is_autocast_enabled(device):
            return self._step(x, hx)
        hx = None if hx is None else (hx[0].to(self._dtype), hx[1].to(self._dtype))
        with torch.autocast(device, enabled=False):
            h, c = self._step(x.to(self._dtype), hx)
        return h.to(dtype), c.to(dtype)

    def _step(self, x: Tensor, hx: State | None) -> State:
        if hx is None:
            zeros = x.new_zeros(len(x), self.hidden_size)
            hx = (zeros, zeros)
        recorded = is_recorded() or needs_gradients(self, x, *hx)
        cache = None if recorded else self._current_cache().values
        level = LevelRun(
            directions=[self._weights()],
            x=x[None],
            states=[hx],
            rows=Rows(steps=1, batch=len(x)),
            training=self.training,
            cache=cache,
        )
        variant = level.variant(in_force(self.execution))
        _, ((h, c),) = level.run(variant)
        if cache is not None:
            cache.update((replay_key(x.shape, x.dtype, hx), step) for step in level.single_steps(variant))
        return h, c

    def _weights(self) -> DirectionWeights:
        return self._by_parts(self._find_weights)

    def _find_weights(self) -> DirectionWeights:
        return weights_of(
            {**self._parameters, **self._modules},
            "",
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            output_size=self.hidden_size,
        )

    def _is_valid(self, x: Tensor, hx: State | None) -> bool:
        """Return whether shapes and dtypes of an input and a state are valid."""
        if x.dim() not in (1, 2) or x.shape[-1] != self.input_size:
            return False
        if x.dtype != self._dtype and not torch.is_autocast_enabled(x.device.type):
            return False
        shape = (*x.shape[:-1], self.hidden_size)
        return hx is None or all(state.shape == shape and state.dtype == x.dtype for state in hx)

    def _raise_error(self, x: Tensor, hx: State | None) -> None:
        """Raise the error of torch's own cell without running it; torch may accept the arguments."""
        twin = nn.LSTMCell(self.input_size, self.hidden_size, bias=self.bias, device="meta", dtype=self._dtype)
        twin(x.to("meta"), None if hx is None else (hx[0].to("meta"), hx[1].to("meta")))
        check_dtypes((x, *(hx or ())), self._dtype)
