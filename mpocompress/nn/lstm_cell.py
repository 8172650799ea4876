"""One step of an LSTM whose weights are matrix product operators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mpocompress.mpo.tracing import is_recorded
from mpocompress.nn.cache import Preparing
from mpocompress.nn.call_checks import check_dtypes, needs_gradients
from mpocompress.nn.direction import DirectionWeights, Weight, kept_of, weights_of
from mpocompress.nn.execution import Execution, ExecutionChoice, checked, in_force
from mpocompress.nn.level import LevelRun
from mpocompress.nn.packed import Rows
from mpocompress.nn.replay import sizes_of
from mpocompress.nn.weight import MPOWeight

States = tuple[Tensor, Tensor]


class MPOLSTMCell(Preparing, ExecutionChoice):
    """An LSTM cell with cores in the place of weights; it answers every call that `torch.nn.LSTMCell` answers.

    Args:
        input_size: features of an input.
        hidden_size: size of the state.
        weights: name -> weight or bias, under the names of `torch.nn.LSTMCell`; `weight_joint` in the place of
            `weight_ih` and `weight_hh` for a joint matrix.
        execution: as for `MPOLSTM`.

    Raises:
        ModelError: a weight is missing, there twice, or of another shape.
        ExecutionError: an execution that there is not.

    Example:
        >>> import mpocompress
        >>> cell = nn.LSTMCell(64, 64)
        >>> mpo = mpocompress.decompose(cell.weight_hh, truncation=mpocompress.Truncation(max_bond=8))
        >>> h, c = MPOLSTMCell.replacing(cell, {"weight_hh": MPOWeight(mpo)})(torch.randn(2, 64))
        >>> h.shape
        torch.Size([2, 64])
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, weights: Mapping[str, Weight], execution: Execution = "auto"
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.execution = input_size, hidden_size, checked(execution)
        for name, weight in weights.items():
            setattr(self, name, weight if isinstance(weight, MPOWeight | nn.Parameter) else nn.Parameter(weight))
        self.bias = "bias_ih" in weights
        self._weights()  # what does not fit is refused here

    @staticmethod
    def replacing(
        layer: nn.LSTMCell, weights: Mapping[str, MPOWeight], *, execution: Execution = "auto"
    ) -> MPOLSTMCell:
        """Make the cell that takes the place of a dense one.

        Args:
            layer: the dense one; it is not changed. What stays dense is shared with it.
            weights: name -> weight, as for the class.
            execution: as for the class.

        Returns:
            The new cell, in training mode if the other is.

        Raises:
            ModelError: a weight of a name or shape that the cell does not have.
        """
        new = MPOLSTMCell(layer.input_size, layer.hidden_size, weights=kept_of(layer, weights), execution=execution)
        new.train(layer.training)
        return new

    def forward(self, input: Tensor, hx: States | None = None) -> States:  # noqa: A002
        """Run one step.

        Args:
            input: shape (batch, input_size), or (input_size,).
            hx: (h, c) before the step, of shape (batch, hidden_size) or (hidden_size,); by default zeros.

        Returns:
            (h, c) after it.

        Raises:
            RuntimeError: an input or a state of the wrong shape, in torch's own words.
            ValueError: an input of the wrong number of dimensions.
        """
        # A small cell takes twenty microseconds: nothing more than this is looked at when such a step has run before.
        store = self.__dict__["_store"]
        if store is not None and hx is not None and not (torch.is_grad_enabled() or is_recorded()):
            step = store.made.get(sizes_of(input.shape, input.dtype, hx))
            if step is not None and store.is_current() and not torch.is_autocast_enabled(step.device_type):
                taken: States = step(input, *hx)
                return taken
        if not self._fits(input, hx):
            self._refuse(input, hx)
        if input.dim() == 1:
            h, c = self._in_precision(input[None], None if hx is None else (hx[0][None], hx[1][None]))
            return h[0], c[0]
        return self._in_precision(input, hx)

    def extra_repr(self) -> str:
        """Sizes as torch shows them, and how it runs; sites and bonds stand with the weights."""
        bias = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}, execution={self.execution}"

    def _in_precision(self, x: Tensor, hx: States | None) -> States:
        """Run in the dtype of the weights: torch's cell is not narrowed by autocast either."""
        device, given = x.device.type, x.dtype if hx is None else hx[1].dtype
        if not torch.is_autocast_enabled(device):
            return self._step(x, hx)
        hx = None if hx is None else (hx[0].to(self._dtype), hx[1].to(self._dtype))
        with torch.autocast(device, enabled=False):
            h, c = self._step(x.to(self._dtype), hx)
        return h.to(given), c.to(given)

    def _step(self, x: Tensor, hx: States | None) -> States:
        if hx is None:
            zeros = x.new_zeros(len(x), self.hidden_size)
            hx = (zeros, zeros)
        recorded = is_recorded() or needs_gradients(self, x, *hx)
        made = None if recorded else self._current().made
        step = LevelRun(
            directions=[self._weights()],
            x=x[None],
            states=[hx],
            rows=Rows(steps=1, batch=len(x)),
            training=self.training,
            made=made,
        )
        way = step.way(in_force(self.execution))
        _, ((h, c),) = step.run(way)
        if made is not None:
            made.update((sizes_of(x.shape, x.dtype, hx), one) for one in step.single_steps(way))
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

    def _fits(self, x: Tensor, hx: States | None) -> bool:
        """Whether an input and a state are what they should be."""
        if x.dim() not in (1, 2) or x.shape[-1] != self.input_size:
            return False
        if x.dtype != self._dtype and not torch.is_autocast_enabled(x.device.type):
            return False
        wanted = (*x.shape[:-1], self.hidden_size)
        return hx is None or all(state.shape == wanted and state.dtype == x.dtype for state in hx)

    def _refuse(self, x: Tensor, hx: States | None) -> None:
        """Have torch's own cell say what is wrong, without running it; it may find nothing."""
        twin = nn.LSTMCell(self.input_size, self.hidden_size, bias=self.bias, device="meta", dtype=self._dtype)
        twin(x.to("meta"), None if hx is None else (hx[0].to("meta"), hx[1].to("meta")))
        check_dtypes((x, *(hx or ())), self._dtype)
