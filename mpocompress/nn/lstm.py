"""An LSTM whose weights are matrix product operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mpocompress.mpo.tracing import is_recorded
from mpocompress.nn.call_checks import check_dtypes, needs_gradients
from mpocompress.nn.direction import DirectionWeights, LayerWeight, replace_weights, weights_of
from mpocompress.nn.execution import Execution, checked, in_force
from mpocompress.nn.layer import MPOLayer
from mpocompress.nn.level import LevelRun, Variant
from mpocompress.nn.packed import Rows, State
from mpocompress.nn.replay import FusedReplay, StepReplay, replay_key
from mpocompress.nn.weight import MPOWeight

States = tuple[Tensor, Tensor]
"""Outputs and cell states of all levels and directions, each of shape (levels * directions, batch, size)."""
Output = tuple[Tensor | PackedSequence, States]


class MPOLSTM(MPOLayer):
    """An LSTM whose weights are stored as cores; it accepts the arguments of `torch.nn.LSTM`.

    Args:
        input_size: features of an input.
        hidden_size: size of the cell state.
        num_layers: number of stacked levels.
        weights: name -> weight or bias, with the names of `torch.nn.LSTM`; `weight_joint_l0` is the joint matrix that
            replaces `weight_ih_l0` and `weight_hh_l0`. At least one weight is stored as cores.
        batch_first: whether inputs and outputs have shape (batch, time, features).
        dropout: probability of dropout between the levels, in training.
        bidirectional: whether every level has a second direction.
        proj_size: size of the projected outputs, or 0 without a projection.
        execution: `factorised` runs from the cores, `materialised` contracts them once and runs as torch does, `auto`
            runs the faster of both.

    Raises:
        ModelError: a weight is missing, given twice, or of another shape.
        ExecutionError: unknown execution mode.

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

    __module__ = "mpocompress"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        weights: Mapping[str, LayerWeight],
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
        self._levels()  # raises an error if weights do not match

    @staticmethod
    def replacing(layer: nn.LSTM, weights: Mapping[str, MPOWeight], *, execution: Execution = "auto") -> MPOLSTM:
        """Make an MPO LSTM from a dense one.

        Args:
            layer: the dense LSTM; it is not changed. Weights that stay dense are shared with it.
            weights: name -> MPO weight, as for the class.
            execution: as for the class.

        Returns:
            The new layer, in training mode if `layer` is.

        Raises:
            ModelError: a weight of a name or shape that the layer does not have.
        """
        new = MPOLSTM(
            layer.input_size,
            layer.hidden_size,
            layer.num_layers,
            weights=replace_weights(layer, weights),
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
            input: shape (time, batch, input_size); (batch, time, input_size) with `batch_first`; (time, input_size) for
                a single sequence; or packed sequences.
            hx: outputs and cell states before the first step, shapes (levels * directions, batch, size), without the
                batch for a single sequence; by default zeros.

        Returns:
            The outputs, laid out as the input, and (h, c) after the last step, as for `torch.nn.LSTM`.

        Raises:
            RuntimeError: an input or a state of the wrong shape; torch's own message.
            ValueError: an input of the wrong number of dimensions or dtype.
        """
        # The flag, because torch 2.10 compiles `is_exporting()` to True.
        if torch.compiler.is_dynamo_compiling() and not torch.compiler._is_exporting_flag:
            disable: Any = torch.compiler.disable  # a compiled loop over steps would be unrolled
            output: Output = disable(MPOLSTM._run)(self, input, hx)
            return output
        # A step, or a small layer, takes some tens of microseconds: a replay needs no other checks.
        cache = self.__dict__["_cache"]
        if cache is not None and not torch.is_grad_enabled() and isinstance(input, Tensor):
            replay = cache.values.get(replay_key(input.shape, input.dtype, hx))
            is_usable = replay is not None and not is_recorded() and cache.is_current()
            if is_usable and not torch.is_autocast_enabled(input.device.type):
                result: Output = replay(input, hx)
                return result
        return self._run(input, hx)

    def flatten_parameters(self) -> None:
        """Do nothing. Code written for `torch.nn.LSTM` calls this to compact dense weights."""

    def extra_repr(self) -> str:
        """Return sizes and options as torch does, and the execution mode; the weights show sites and bonds."""
        parts = [str(self.input_size), str(self.hidden_size)]
        parts += [f"proj_size={self.proj_size}"] if self.proj_size else []
        parts += [f"num_layers={self.num_layers}"] if self.num_layers != 1 else []
        parts += [f"bias={self.bias}"] if not self.bias else []
        parts += [f"batch_first={self.batch_first}"] if self.batch_first else []
        parts += [f"dropout={self.dropout}"] if self.dropout else []
        parts += [f"bidirectional={self.bidirectional}"] if self.bidirectional else []
        return ", ".join([*parts, f"execution={self.execution}"])

    def _run(self, input: Tensor | PackedSequence, hx: States | None) -> Output:  # noqa: A002
        packed, x = (input, input.data) if isinstance(input, PackedSequence) else (None, input)
        if not self._is_valid(x, hx, packed):
            self._raise_error(x, hx, packed)
        is_single = packed is None and x.dim() == 2
        if is_single:
            x, hx = x.unsqueeze(1), None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        elif self.batch_first and packed is None:
            x = x.transpose(0, 1)
        if packed is None:
            y, (h, c) = self._in_precision(x, hx, Rows(steps=len(x), batch=x.shape[1]))
            if is_single:
                return y.squeeze(1), (h.squeeze(1), c.squeeze(1))
            return (y.transpose(0, 1) if self.batch_first else y), (h, c)
        rows = Rows(steps=len(packed.batch_sizes), batch=int(packed.batch_sizes[0]), sizes=packed.batch_sizes)
        y, states = self._in_precision(x, _ordered(hx, packed.sorted_indices), rows)
        order = packed.unsorted_indices
        return PackedSequence(y, packed.batch_sizes, packed.sorted_indices, order), _ordered(states, order)

    def _in_precision(self, x: Tensor, hx: States | None, rows: Rows) -> tuple[Tensor, States]:
        """Run in the dtype of autocast, if it is enabled."""
        device = x.device.type
        if not torch.is_autocast_enabled(device) or self._dtype == torch.float64:  # autocast does not convert it
            return self._through_levels(x, hx, rows)
        dtype = torch.get_autocast_dtype(device)
        hx = None if hx is None else (hx[0].to(dtype), hx[1].to(dtype))
        with torch.autocast(device, enabled=False):
            return self._through_levels(x.to(dtype), hx, rows)

    def _through_levels(self, x: Tensor, hx: States | None, rows: Rows) -> tuple[Tensor, States]:
        levels = self._levels()
        directions = len(levels[0])
        if hx is None:
            h = x.new_zeros(rows.batch, self.proj_size or self.hidden_size)
            c = x.new_zeros(rows.batch, self.hidden_size) if self.proj_size else h
            before: list[State] = [(h, c)] * (len(levels) * directions)
        else:
            before = list(zip(hx[0].unbind(0), hx[1].unbind(0), strict=True))
        recorded = is_recorded() or needs_gradients(self, x, *(hx or ()))
        cache = None if recorded else self._current_cache()
        execution = in_force(self.execution)
        after: list[State] = []
        runs: list[tuple[LevelRun, Variant]] = []
        y = x
        for place, weights in enumerate(levels):
            if place and self.dropout and self.training:
                y = F.dropout(y, self.dropout)
            level = LevelRun(
                directions=weights,
                x=y,
                states=before[place * directions : (place + 1) * directions],
                rows=rows,
                training=self.training,
                cache=None if cache is None else cache.values.setdefault(place, {}),
            )
            runs.append((level, level.variant(execution)))
            y, last = level.run(runs[-1][1])
            after += last
        if cache is not None and rows.sizes is None and x.dtype == self._dtype and not (self.dropout and self.training):
            replay = self._replay(runs, has_states=hx is not None)
            steps, batch, features = x.shape
            shape = (batch, steps, features) if self.batch_first else (steps, batch, features)
            if replay is not None:
                cache.values[replay_key(shape, x.dtype, hx)] = replay
        return y, (torch.stack([h for h, _ in after]), torch.stack([c for _, c in after]))

    def _replay(self, runs: Sequence[tuple[LevelRun, Variant]], *, has_states: bool) -> StepReplay | FusedReplay | None:
        """Make the replay of a run for inputs of the same sizes; None if it cannot be replayed."""
        steps = [level.single_steps(variant) for level, variant in runs]
        if all(steps) and has_states:
            return StepReplay(steps, batch_first=self.batch_first)
        if not all(variant == "fused" for _, variant in runs):
            return None
        return FusedReplay(
            [dense for level, _ in runs for dense in level.dense_weights()],
            has_biases=self.bias,
            levels=len(runs),
            directions=len(runs[0][0].states),
            batch_first=self.batch_first,
            sizes=(self.proj_size or self.hidden_size, self.hidden_size),
        )

    def _levels(self) -> list[tuple[DirectionWeights, ...]]:
        """Return the weights of every level, forward and backward."""
        return self._by_parts(self._find_levels)

    def _find_levels(self) -> list[tuple[DirectionWeights, ...]]:
        tensors = {**self._parameters, **self._modules}
        outputs, suffixes = self.proj_size or self.hidden_size, ("", "_reverse") if self.bidirectional else ("",)
        return [
            tuple(
                weights_of(
                    tensors,
                    f"_l{level}{suffix}",
                    input_size=outputs * len(suffixes) if level else self.input_size,
                    hidden_size=self.hidden_size,
                    output_size=outputs,
                )
                for suffix in suffixes
            )
            for level in range(self.num_layers)
        ]

    def _is_valid(self, x: Tensor, hx: States | None, packed: PackedSequence | None) -> bool:
        """Return whether shapes and dtypes of an input and of states are valid."""
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

    def _raise_error(self, x: Tensor, hx: States | None, packed: PackedSequence | None) -> None:
        """Raise the error of torch's own LSTM without running it; torch may accept the arguments."""
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
        meta = x.to("meta")
        states = None if hx is None else (hx[0].to("meta"), hx[1].to("meta"))
        twin(meta if packed is None else packed._replace(data=meta, sorted_indices=None, unsorted_indices=None), states)
        check_dtypes((x, *(hx or ())), self._dtype)


def _ordered(states: States | None, order: Tensor | None) -> Any:
    """Return states with their rows in another order."""
    return states if states is None or order is None else tuple(state.index_select(1, order) for state in states)
