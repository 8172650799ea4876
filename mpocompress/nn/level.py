"""One level of an LSTM in one or two directions, run in the fastest variant."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from mpocompress.mpo.tracing import is_traced, is_transformed
from mpocompress.nn.cost import Work, sequence_seconds
from mpocompress.nn.direction import DirectionWeights
from mpocompress.nn.execution import MODELLED, Candidate, bucket, choose
from mpocompress.nn.gates import gate_scale, uses_numpy
from mpocompress.nn.inference_loop import Loop
from mpocompress.nn.operands import Product
from mpocompress.nn.packed import Rows, State, run_over
from mpocompress.nn.recurrence import recur, recur_plainly
from mpocompress.nn.single_step import DenseStep, SingleStep
from mpocompress.nn.step_products import Operands

Variant = Literal["factorised", "fused", "loop"]
"""How a level runs: from the cores; or from materialised weights, in torch's kernel (fused) or step by step (loop)."""

_DERIVED = {"dense", "loop", "operands", "step"}
_MODES: dict[Variant, str] = {"factorised": "factorised", "fused": "materialised", "loop": "materialised"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LevelRun:
    """A level and the inputs that it runs on.

    Args:
        directions: the weights, forward and, if there are two directions, backward.
        x: the inputs, shape (time, batch, features), or (rows, features) of packed sequences.
        states: the state before the first step of every direction.
        rows: the rows of `x` by step.
        training: argument of torch's kernel.
        cache: cached operands and choices; None if the run is recorded, for gradients or by a tracer.
    """

    directions: Sequence[DirectionWeights]
    x: Tensor
    states: Sequence[State]
    rows: Rows
    training: bool
    cache: dict[Hashable, Any] | None

    def variant(self, execution: str) -> Variant:
        """Return the variant for these sizes; it is chosen once.

        Args:
            execution: result of `in_force`.
        """
        if is_traced():
            return self._traced_variant(execution)
        if self.rows.batch == 0:
            return "fused"
        if self.cache is None:
            return self._choose(execution)
        key = ("variant", execution, torch.get_num_threads(), *self._sizes)
        variant: Variant | None = self.cache.get(key)
        if variant is None:
            variant = self._choose(execution)
            self._discard_other_variants(variant)
            self.cache[key] = variant
        return variant

    def run(self, variant: Variant) -> tuple[Tensor, list[State]]:
        """Run in one variant.

        Args:
            variant: result of `variant`.

        Returns:
            The outputs of all directions side by side, laid out as the inputs, and the states after the last step.
        """
        if variant == "fused":
            return self._run_fused()
        wide = torch.promote_types(self.x.dtype, torch.float32)  # half types are computed in float32
        x, outputs, after = self.x.to(wide), [], []
        for place, state in enumerate(self.states):
            run_even = partial(self._recorded if self.cache is None else self._unrecorded, place, variant)
            y, last = run_over(x, (state[0].to(wide), state[1].to(wide)), self.rows, run_even, reverse=place == 1)
            outputs.append(y.to(self.x.dtype))
            after.append((last[0].to(self.x.dtype), last[1].to(self.x.dtype)))
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)), after

    def single_steps(self, variant: Variant) -> list[SingleStep | DenseStep]:
        """Return the functions that ran a single step, one for every direction; none if something else ran.

        Args:
            variant: the variant that ran.
        """
        if self.rows.steps != 1 or self.x.dtype not in (torch.float32, torch.float64):
            return []
        keys = (("step", variant, place, self.x.dtype, self.rows.batch) for place in range(len(self.states)))
        return [step for step in map(self._cached, keys) if step is not None]

    def dense_weights(self) -> list[tuple[Tensor, ...]]:
        """Return the materialised weights of every direction in torch's order, in the dtype of the inputs."""
        return [tuple(tensor.to(self.x.dtype) for tensor in self._dense(place)) for place in range(len(self.states))]

    def _unrecorded(self, place: int, variant: Variant, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one direction over steps with the same number of rows, with cached operands."""
        h, c = state
        if self.rows.steps == 1 and variant == "loop" and self.directions[place].projection is None:
            dense = DenseStep([tensor.to(x.dtype) for tensor in self._dense(place)])
            self._keep(("step", variant, place, x.dtype, len(c)), dense)
            h, c = dense(x[0], h, c)
            return h.unsqueeze(0), (h, c)
        weights = self._cached(("operands", variant, place, x.dtype, uses_numpy(c)))
        if weights is None:
            weights = self._operands(place, variant, x.dtype).scaled(gate_scale(c))
            self._keep(("operands", variant, place, x.dtype, uses_numpy(c)), weights)
        if self.rows.steps == 1:
            step = self._cached(("step", variant, place, x.dtype, len(c)))
            if step is None:
                step = SingleStep(weights, c)
                self._keep(("step", variant, place, x.dtype, len(c)), step)
            h, c = step(x[0], h, c)
            return h.unsqueeze(0), (h, c)
        loop = self._cached(("loop", variant, place, x.dtype, len(c)))
        if loop is None:
            loop = Loop(weights, c)
            if self.rows.sizes is None:  # packed sequences have many numbers of rows, each for a short stretch
                self._keep(("loop", variant, place, x.dtype, len(c)), loop)
        y, c = loop(x, h, c, reverse=place == 1)
        return y, (y[0 if place == 1 else -1], c)

    def _recorded(self, place: int, variant: Variant, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one direction over steps with the same number of rows; differentiable."""
        weights = self._operands(place, variant, x.dtype)
        input_part = (weights.inputs(x.reshape(-1, x.shape[2])) + weights.bias).view(*x.shape[:2], -1)
        if len(x) == 1 or is_traced() or is_transformed():
            run = recur_plainly(input_part, *state, weights.hidden, weights.projection, reverse=place == 1)
            return run.outputs, run.state
        y, c = recur(input_part, *state, weights.hidden, weights.projection, reverse=place == 1)
        return y, (y[0 if place == 1 else -1], c)

    def _run_fused(self) -> tuple[Tensor, list[State]]:
        """Run all directions in torch's kernel, with materialised weights."""
        weights = [tensor for dense in self.dense_weights() for tensor in dense]
        states = tuple(torch.stack([state[part] for state in self.states]) for part in range(2))
        common = (weights, len(self.directions[0].biases) > 0, 1, 0.0, self.training, len(self.states) == 2)
        if self.rows.sizes is None:
            y, h, c = torch.lstm(self.x, states, *common, False)
        else:
            y, h, c = torch.lstm(self.x, self.rows.sizes, states, *common)
        if h.dim() == 4:  # torch 2.10 exports the states with one dimension too many
            h, c = h.view_as(states[0]), c.view_as(states[1])
        return y, [(h[place], c[place]) for place in range(len(h))]

    def _operands(self, place: int, variant: Variant, dtype: torch.dtype) -> Operands:
        """Return the operands of a direction; differentiable."""
        weights = self.directions[place].operands(dtype)
        if variant == "factorised":
            return weights
        inputs, hidden, *_ = self._dense(place)
        return Operands(
            inputs=Product(operands=(inputs.to(dtype).T,)),
            hidden=Product(operands=(hidden.to(dtype).T,)),
            bias=weights.bias,
            projection=weights.projection,
        )

    def _dense(self, place: int) -> tuple[Tensor, ...]:
        """Return the materialised weights of a direction in the order of `torch.lstm`, cached if there is a cache."""
        dense: tuple[Tensor, ...] | None = self._cached(("dense", "fused", place))
        if dense is None:
            dense = self.directions[place].dense()
            self._keep(("dense", "fused", place), dense)
        return dense

    def _cached(self, key: Hashable) -> Any:
        return None if self.cache is None else self.cache.get(key)

    def _keep(self, key: Hashable, value: object) -> None:
        if self.cache is not None:
            self.cache[key] = value

    @property
    def _sizes(self) -> tuple[Hashable, ...]:
        """The sizes that a choice is remembered for."""
        return bucket(self.rows.steps), bucket(self.rows.batch), self.x.dtype

    def _traced_variant(self, execution: str) -> Variant:
        """Return the variant to record; a loop over steps only on request, because it is recorded unrolled."""
        has_cores = any(not weights.is_dense for weights in self.directions)
        if self.rows.steps > 1 or self.rows.sizes is not None:
            return "factorised" if execution == "factorised" and has_cores else "fused"
        cores, dense = (
            sum(work.hidden + work.inputs for work in side) for side in zip(*map(_work, self.directions), strict=True)
        )
        is_cheaper = execution == "factorised" or (execution != "materialised" and cores < dense)
        return "factorised" if is_cheaper and has_cores else "loop"

    def _choose(self, execution: str) -> Variant:
        """Choose a variant, by measurement if nothing is recorded."""
        work = [_work(weights) for weights in self.directions]
        seconds = partial(
            sequence_seconds,
            self.rows.steps,
            self.rows.batch,
            self.states[0][1].shape[-1],
            itemsize=self.x.dtype.itemsize,
            trained=self.cache is None,
        )
        cores, dense = ([direction[part] for direction in work] for part in range(2))
        estimates: dict[Variant, float] = {
            "factorised": seconds(cores, fused=False),
            "fused": seconds(dense, fused=True),
        }
        if self.cache is not None:
            estimates["loop"] = seconds(dense, fused=False)
        if all(weights.is_dense for weights in self.directions):  # a dense level of a layer that has cores in another
            del estimates["factorised"]
            execution = MODELLED if execution == "factorised" else execution
        candidates = {
            variant: Candidate(
                mode=_MODES[variant],
                modelled_s=estimate_s,
                run=None if self.cache is None else partial(self.run, variant),
            )
            for variant, estimate_s in estimates.items()
        }
        shapes = (self.directions[0].input_size, self.directions[0].projection is not None, *cores)
        return choose(candidates, execution, ("lstm", *self._sizes, self.x.device.type, shapes))

    def _discard_other_variants(self, variant: Variant) -> None:
        """Discard what was cached to measure other variants, unless inputs of other sizes use it."""
        cache = self.cache or {}
        entries = list(cache.items())  # a copy, because another thread may add to it
        used = {variant, *(value for key, value in entries if isinstance(key, tuple) and key[0] == "variant")}
        for key, _ in entries:
            if isinstance(key, tuple) and key[0] in _DERIVED:
                users = {"fused", "loop"} if key[0] == "dense" else {key[1]}
                if not users & used:
                    cache.pop(key, None)


def _work(weights: DirectionWeights) -> tuple[Work, Work]:
    """Return the work of a direction with the cores, and with materialised weights."""
    inputs, hidden = weights.sizes()
    rows, columns = weights.shape
    return (
        Work(inputs=inputs[0], hidden=hidden[0], entries=hidden[1]),
        Work(inputs=rows * weights.input_size, hidden=rows * columns, entries=rows * columns),
    )
