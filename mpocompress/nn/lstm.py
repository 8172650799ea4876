"""An LSTM whose weights are matrix product operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mpocompress.nn.autograd_state import check_dtypes, is_recorded, needs_gradients
from mpocompress.nn.cache import Preparing
from mpocompress.nn.direction import DirectionWeights, Weight, kept_of, weights_of
from mpocompress.nn.execution import Execution, ExecutionChoice, checked, in_force
from mpocompress.nn.level import FUSED, LevelRun
from mpocompress.nn.packed import Rows, State
from mpocompress.nn.replay import FusedAgain, StepAgain, sizes_of
from mpocompress.nn.weight import MPOWeight

States = tuple[Tensor, Tensor]
Output = tuple[Tensor | PackedSequence, States]
Run = Callable[["MPOLSTM", Tensor | PackedSequence, States | None], Output]


class MPOLSTM(Preparing, ExecutionChoice):
    """An LSTM with cores in the place of weights; it answers every call that `torch.nn.LSTM` answers.

    Args:
        input_size: features of an input.
        hidden_size: size of the cell state.
        num_layers: how many levels are stacked.
        weights: name -> weight or bias, under the names of `torch.nn.LSTM`; `weight_joint_l0` in the place of
            `weight_ih_l0` and `weight_hh_l0` for a joint matrix. At least one weight is stored as cores.
        batch_first: whether inputs and outputs are (batch, time, features).
        dropout: probability of dropout between the levels, in training.
        bidirectional: whether every level has a second direction.
        proj_size: size of the outputs where they are projected, or 0.
        execution: `factorised` runs with the cores, `materialised` multiplies them out once and runs as torch does,
            `auto` takes what is faster here.

    Raises:
        ModelError: a weight is missing, there twice, or of another shape.
        ExecutionError: an execution that there is not.

    Source:
        Gao, Sun, Gao, Li, Lu 2020, "Compressing LSTM Networks by Matrix Product Operators", arXiv 2012.11943.

    Example:
        >>> import mpocompress
        >>> lstm = nn.LSTM(64, 64)
        >>> mpo = mpocompress.decompose(lstm.weight_hh_l0, truncation=mpocompress.Truncation(max_bond=8))
        >>> small = MPOLSTM.replacing(lstm, {"weight_hh_l0": MPOWeight(mpo)})
        >>> output, (h, c) = small(torch.randn(5, 2, 64))
        >>> output.shape
        torch.Size([5, 2, 64])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        weights: Mapping[str, Weight],
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        execution: Execution = "auto",
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.bidirectional = batch_first, float(dropout), bidirectional
        self.proj_size, self.execution = proj_size, checked(execution)
        for name, weight in weights.items():
            setattr(self, name, weight if isinstance(weight, MPOWeight | nn.Parameter) else nn.Parameter(weight))
        self.bias = "bias_ih_l0" in weights
        self._levels()  # what does not fit is refused here

    @staticmethod
    def replacing(layer: nn.LSTM, weights: Mapping[str, MPOWeight], *, execution: Execution = "auto") -> MPOLSTM:
        """Make the LSTM that takes the place of a dense one.

        Args:
            layer: the dense one; it is not changed. What stays dense is shared with it.
            weights: name -> weight, as for the class.
            execution: as for the class.

        Returns:
            The new layer, in training mode if the other is.

        Raises:
            ModelError: a weight of a name or shape that the layer does not have.
        """
        new = MPOLSTM(
            layer.input_size,
            layer.hidden_size,
            layer.num_layers,
            weights=kept_of(layer, weights),
            batch_first=layer.batch_first,
            dropout=layer.dropout,
            bidirectional=layer.bidirectional,
            proj_size=layer.proj_size,
            execution=execution,
        )
        new.train(layer.training)
        return new

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002
        hx: States | None = None,
    ) -> Output:
        """Run over sequences.

        Args:
            input: shape (time, batch, input_size); (batch, time, input_size) with `batch_first`; (time, input_size) of
                one sequence; or packed sequences.
            hx: outputs and cell states before the first step, shapes (levels * directions, batch, size), without the
                batch for one sequence; by default zeros.

        Returns:
            The outputs, laid out as the input, and (h, c) after the last step, as `torch.nn.LSTM` gives them.

        Raises:
            RuntimeError: an input or a state of the wrong shape, in torch's own words.
            ValueError: an input of the wrong number of dimensions or dtype.
        """
        # The flag, because torch 2.10 compiles `is_exporting()` to True.
        if torch.compiler.is_dynamo_compiling() and not torch.compiler._is_exporting_flag:
            disable: Any = torch.compiler.disable  # compiled, every step would be written out
            outside: Run = disable(MPOLSTM._run)
            return outside(self, input, hx)
        # A step, or a small layer, takes some tens of microseconds: nothing more is looked at when it has run before.
        store = self.__dict__["_store"]
        if store is not None and not torch.is_grad_enabled() and isinstance(input, Tensor):
            again = store.made.get(sizes_of(input.shape, input.dtype, hx))
            usable = again is not None and not is_recorded() and store.is_current()
            if usable and not torch.is_autocast_enabled(input.device.type):
                result: Output = again(input, hx)
                return result
        return self._run(input, hx)

    def flatten_parameters(self) -> None:
        """Do nothing: there is no dense weight to lay out anew. Code written for `torch.nn.LSTM` calls it."""

    def extra_repr(self) -> str:
        """Sizes and options as torch shows them, and how it runs; sites and bonds stand with the weights."""
        parts = [str(self.input_size), str(self.hidden_size)]
        parts += [f"proj_size={self.proj_size}"] if self.proj_size else []
        parts += [f"num_layers={self.num_layers}"] if self.num_layers != 1 else []
        parts += [f"bias={self.bias}"] if not self.bias else []
        parts += [f"batch_first={self.batch_first}"] if self.batch_first else []
        parts += [f"dropout={self.dropout}"] if self.dropout else []
        parts += [f"bidirectional={self.bidirectional}"] if self.bidirectional else []
        return ", ".join([*parts, f"execution={self.execution}"])

    def _run(self, given: Tensor | PackedSequence, hx: States | None) -> Output:
        packed, x = (given, given.data) if isinstance(given, PackedSequence) else (None, given)
        if not self._fits(x, hx, packed):
            self._refuse(x, hx, packed)
        alone = packed is None and x.dim() == 2
        if alone:
            x, hx = x.unsqueeze(1), None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        elif self.batch_first and packed is None:
            x = x.transpose(0, 1)
        if packed is None:
            y, (h, c) = self._in_precision(x, hx, Rows(steps=len(x), batch=x.shape[1]))
            if alone:
                return y.squeeze(1), (h.squeeze(1), c.squeeze(1))
            return (y.transpose(0, 1) if self.batch_first else y), (h, c)
        rows = Rows(steps=len(packed.batch_sizes), batch=int(packed.batch_sizes[0]), sizes=packed.batch_sizes)
        y, states = self._in_precision(x, _ordered(hx, packed.sorted_indices), rows)
        order = packed.unsorted_indices
        return PackedSequence(y, packed.batch_sizes, packed.sorted_indices, order), _ordered(states, order)

    def _in_precision(self, x: Tensor, hx: States | None, rows: Rows) -> tuple[Tensor, States]:
        """Run in the dtype that autocast asks for, if it does."""
        device = x.device.type
        if not torch.is_autocast_enabled(device) or self._dtype == torch.float64:  # which autocast leaves alone
            return self._through_levels(x, hx, rows)
        dtype = torch.get_autocast_dtype(device)
        hx = None if hx is None else (hx[0].to(dtype), hx[1].to(dtype))
        with torch.autocast(device, enabled=False):
            return self._through_levels(x.to(dtype), hx, rows)

    def _through_levels(self, x: Tensor, hx: States | None, rows: Rows) -> tuple[Tensor, States]:
        levels = self._levels()
        every = len(levels[0])
        if hx is None:
            h = x.new_zeros(rows.batch, self.proj_size or self.hidden_size)
            c = x.new_zeros(rows.batch, self.hidden_size) if self.proj_size else h
            before: list[State] = [(h, c)] * (len(levels) * every)
        else:
            before = list(zip(hx[0].unbind(0), hx[1].unbind(0), strict=True))
        recorded = is_recorded() or needs_gradients(self, x, *(hx or ()))
        store = None if recorded else self._current()
        execution = in_force(self.execution)
        after: list[State] = []
        runs: list[tuple[LevelRun, str]] = []
        y = x
        for place, directions in enumerate(levels):
            if place and self.dropout and self.training:
                y = F.dropout(y, self.dropout)
            level = LevelRun(
                directions=directions,
                x=y,
                states=before[place * every : (place + 1) * every],
                rows=rows,
                training=self.training,
                made=None if store is None else store.made.setdefault(place, {}),
            )
            runs.append((level, level.way(execution)))
            y, done = level.run(runs[-1][1])
            after += done
        if store is not None and rows.sizes is None and x.dtype == self._dtype and not (self.dropout and self.training):
            again = self._again(runs, given=hx is not None)
            steps, batch, features = x.shape
            shape = (batch, steps, features) if self.batch_first else (steps, batch, features)
            if again is not None:
                store.made[sizes_of(shape, x.dtype, hx)] = again
        return y, (torch.stack([h for h, _ in after]), torch.stack([c for _, c in after]))

    def _again(self, runs: Sequence[tuple[LevelRun, str]], *, given: bool) -> StepAgain | FusedAgain | None:
        """What does the same for inputs of the same sizes, with less around it; None where there is no such thing."""
        steps = [level.single_steps(way) for level, way in runs]
        if all(steps) and given:
            return StepAgain(steps, batch_first=self.batch_first)
        if not all(way == FUSED for _, way in runs):
            return None
        return FusedAgain(
            [dense for level, _ in runs for dense in level.dense_weights()],
            has_biases=self.bias,
            levels=len(runs),
            directions=len(runs[0][0].states),
            batch_first=self.batch_first,
            sizes=(self.proj_size or self.hidden_size, self.hidden_size),
        )

    def _levels(self) -> list[tuple[DirectionWeights, ...]]:
        """The weights of every level, forward and backward."""
        return self._by_parts(self._find_levels)

    def _find_levels(self) -> list[tuple[DirectionWeights, ...]]:
        tensors = {**self._parameters, **self._modules}
        outputs, sides = self.proj_size or self.hidden_size, ("", "_reverse") if self.bidirectional else ("",)
        return [
            tuple(
                weights_of(
                    tensors,
                    f"_l{level}{side}",
                    input_size=outputs * len(sides) if level else self.input_size,
                    hidden_size=self.hidden_size,
                    output_size=outputs,
                )
                for side in sides
            )
            for level in range(self.num_layers)
        ]

    def _fits(self, x: Tensor, hx: States | None, packed: PackedSequence | None) -> bool:
        """Whether an input and states are what they should be."""
        dims = x.dim()
        if dims not in ((2, 3) if packed is None else (2,)) or x.shape[-1] != self.input_size or not x.shape[0]:
            return False
        if x.dtype != self._dtype and not torch.is_autocast_enabled(x.device.type):
            return False
        if packed is not None or dims == 2:
            batch = int(packed.batch_sizes[0]) if packed is not None else 1
        else:
            batch = x.shape[0] if self.batch_first else x.shape[1]
        if hx is None:
            return dims == 2 or x.shape[1] > 0
        rows = (self.num_layers * (2 if self.bidirectional else 1),)
        sizes = ((self.proj_size or self.hidden_size,), (self.hidden_size,))
        middle = () if packed is None and dims == 2 else (batch,)
        return all(
            state.shape == rows + middle + size and state.dtype == x.dtype
            for state, size in zip(hx, sizes, strict=True)
        )

    def _refuse(self, x: Tensor, hx: States | None, packed: PackedSequence | None) -> None:
        """Have torch's own LSTM say what is wrong, without running it; it may find nothing."""
        twin = nn.LSTM(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            proj_size=self.proj_size,
            device="meta",
            dtype=self._dtype,
        )
        given = x.to("meta")
        states = None if hx is None else (hx[0].to("meta"), hx[1].to("meta"))
        twin(
            given if packed is None else packed._replace(data=given, sorted_indices=None, unsorted_indices=None), states
        )
        check_dtypes((x, *(hx or ())), self._dtype)


def _ordered(states: States | None, order: Tensor | None) -> Any:
    """States with their rows in another order."""
    return states if states is None or order is None else tuple(state.index_select(1, order) for state in states)
