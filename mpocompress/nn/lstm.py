"""An LSTM whose weights are matrix product operators."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mpocompress.nn.direction import DirectionWeights, Weight, kept_of, weights_of
from mpocompress.nn.execution import Execution, ExecutionChoice, checked, in_force
from mpocompress.nn.level import LevelRun
from mpocompress.nn.prepared import Preparing
from mpocompress.nn.recording import check_dtypes, is_recorded, is_transformed, needs_gradients
from mpocompress.nn.rows import Rows, State
from mpocompress.nn.single import DenseStep, SingleStep
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
        if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
            disable: Any = torch.compiler.disable  # compiled, every step would be written out
            outside: Run = disable(MPOLSTM._run)
            return outside(self, input, hx)
        # A step takes some tens of microseconds: nothing more than this is looked at when such a one has run before.
        store = self.__dict__["_store"]
        if store is not None and hx is not None and isinstance(input, Tensor):
            steps = store.made.get(_sizes(input.transpose(0, 1) if self.batch_first else input, *hx))
            usable = steps is not None and not (torch.is_grad_enabled() or is_transformed()) and store.is_current()
            if usable and not torch.is_autocast_enabled(input.device.type):
                return self._step(input, hx, steps)
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

    def _step(self, x: Tensor, hx: States, levels: list[list[SingleStep | DenseStep]]) -> Output:
        """One step through all levels, as was done before."""
        x, (h, c) = x.squeeze(1 if self.batch_first else 0), hx
        hs: list[Tensor] = []
        cs: list[Tensor] = []
        for level in levels:
            outputs = []
            for step in level:
                output, cell = step(x, h[len(hs)], c[len(hs)])
                outputs.append(output)
                hs.append(output)
                cs.append(cell)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        cells = cs[0].unsqueeze(0) if len(cs) == 1 else torch.stack(cs)
        return x.unsqueeze(1 if self.batch_first else 0), (torch.stack(hs), cells)

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
        execution, given = in_force(self.execution), x
        after: list[State] = []
        steps: list[list[SingleStep | DenseStep]] = []
        for place, directions in enumerate(levels):
            if place and self.dropout and self.training:
                x = F.dropout(x, self.dropout)
            level = LevelRun(
                directions=directions,
                x=x,
                states=before[place * every : (place + 1) * every],
                rows=rows,
                training=self.training,
                made=None if store is None else store.made.setdefault(place, {}),
            )
            way = level.way(execution)
            x, done = level.run(way)
            after += done
            steps.append(level.single_steps(way) if rows.sizes is None and store is not None else [])
        if store is not None and hx is not None and all(steps) and not (self.dropout and self.training):
            store.made[_sizes(given, *hx)] = steps
        return x, (torch.stack([h for h, _ in after]), torch.stack([c for _, c in after]))

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


def _sizes(x: Tensor, h: Tensor, c: Tensor) -> Hashable:
    """What a step that was made before is found by."""
    return x.shape, h.shape, c.shape, x.dtype, h.dtype, c.dtype
