"""One level of an LSTM, in one or two directions, run in the way that suits it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mpocompress.nn.autograd_state import is_traced, is_transformed
from mpocompress.nn.cost import Work, sequence_seconds
from mpocompress.nn.direction import DirectionWeights
from mpocompress.nn.execution import MODELLED, Candidate, bucket, choose
from mpocompress.nn.gates import gate_scale, uses_numpy
from mpocompress.nn.loop import Loop
from mpocompress.nn.operands import Product
from mpocompress.nn.packed import Rows, State, run_over
from mpocompress.nn.recurrence import recur, recur_plainly
from mpocompress.nn.single_step import DenseStep, SingleStep
from mpocompress.nn.steps import Operands

FACTORISED, FUSED, LOOP = "factorised", "fused", "loop"
"""Ways to run: with the cores; or multiplied out, by the kernel of torch or step by step."""
_DERIVED = {"dense", "loop", "operands", "step"}
_MODES = {FACTORISED: "factorised", FUSED: "materialised", LOOP: "materialised"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LevelRun:
    """A level, and what it is to run over.

    Args:
        directions: the weights, forward and, if there are two, backward.
        x: the inputs, shape (time, batch, features), or (rows, features) of packed sequences.
        states: before the first step, one for every direction.
        rows: how the rows belong to steps.
        training: what torch's own kernel is told.
        made: where operands and choices are kept; None where the run is recorded, for gradients or by a tracer.
    """

    directions: Sequence[DirectionWeights]
    x: Tensor
    states: Sequence[State]
    rows: Rows
    training: bool
    made: dict[Hashable, Any] | None

    def way(self, execution: str) -> str:
        """The way to run that suits these sizes; it is found once.

        Args:
            execution: as `in_force` gives it.

        Returns:
            `factorised`, `fused` or `loop`.
        """
        if is_traced():
            return self._traced_way(execution)
        if self.rows.batch == 0:
            return FUSED
        if self.made is None:
            return self._suitable(execution)
        key = ("way", execution, torch.get_num_threads(), *self._sizes)
        way: str | None = self.made.get(key)
        if way is None:
            way = self._suitable(execution)
            self._keep_only(way)
            self.made[key] = way
        return way

    def run(self, way: str) -> tuple[Tensor, list[State]]:
        """Run in one way.

        Args:
            way: as `way` gives it.

        Returns:
            The outputs of all directions side by side, laid out as the inputs, and the states after the last step.
        """
        if way == FUSED:
            return self._run_fused()
        wide = torch.promote_types(self.x.dtype, torch.float32)  # half types are computed in float32
        x, outputs, after = self.x.to(wide), [], []
        for place, state in enumerate(self.states):
            run_even = partial(self._recorded if self.made is None else self._unrecorded, place, way)
            y, last = run_over(x, (state[0].to(wide), state[1].to(wide)), self.rows, run_even, reverse=place == 1)
            outputs.append(y.to(self.x.dtype))
            after.append((last[0].to(self.x.dtype), last[1].to(self.x.dtype)))
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)), after

    def single_steps(self, way: str) -> list[SingleStep | DenseStep]:
        """What ran a single step, one for every direction, to be called by itself the next time.

        Args:
            way: how it ran.

        Returns:
            The steps; none where something else ran.
        """
        if self.rows.steps != 1:
            return []
        kept = (self._kept(("step", way, place, self.x.dtype, self.rows.batch)) for place in range(len(self.states)))
        return [step for step in kept if step is not None and self.x.dtype in (torch.float32, torch.float64)]

    def dense_weights(self) -> list[tuple[Tensor, ...]]:
        """The multiplied-out weights of every direction, as `torch.lstm` wants them, in the dtype of the inputs."""
        return [tuple(tensor.to(self.x.dtype) for tensor in self._dense(place)) for place in range(len(self.states))]

    def _unrecorded(self, place: int, way: str, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One direction over steps with as many rows, with operands that are kept."""
        h, c = state
        if self.rows.steps == 1 and way == LOOP and self.directions[place].projection is None:
            dense = DenseStep([tensor.to(x.dtype) for tensor in self._dense(place)])
            self._keep(("step", way, place, x.dtype, len(c)), dense)
            h, c = dense(x[0], h, c)
            return h.unsqueeze(0), (h, c)
        weights = self._kept(("operands", way, place, x.dtype, uses_numpy(c)))
        if weights is None:
            weights = self._operands(place, way, x.dtype).scaled(gate_scale(c))
            self._keep(("operands", way, place, x.dtype, uses_numpy(c)), weights)
        if self.rows.steps == 1:
            step = self._kept(("step", way, place, x.dtype, len(c)))
            if step is None:
                step = SingleStep(weights, c)
                self._keep(("step", way, place, x.dtype, len(c)), step)
            h, c = step(x[0], h, c)
            return h.unsqueeze(0), (h, c)
        loop = self._kept(("loop", way, place, x.dtype, len(c)))
        if loop is None:
            loop = Loop(weights, c)
            if self.rows.sizes is None:  # packed sequences have many numbers of rows, each for a short stretch
                self._keep(("loop", way, place, x.dtype, len(c)), loop)
        y, c = loop(x, h, c, reverse=place == 1)
        return y, (y[0 if place == 1 else -1], c)

    def _recorded(self, place: int, way: str, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One direction over steps with as many rows, differentiably."""
        weights = self._operands(place, way, x.dtype)
        share = (weights.inputs(x.reshape(-1, x.shape[2])) + weights.bias).view(*x.shape[:2], -1)
        if len(x) == 1 or is_traced() or is_transformed():
            y, last = recur_plainly(share, *state, weights.hidden, weights.projection, reverse=place == 1)
            return y, last
        y, c = recur(share, *state, weights.hidden, weights.projection, reverse=place == 1)
        return y, (y[0 if place == 1 else -1], c)

    def _run_fused(self) -> tuple[Tensor, list[State]]:
        """All directions by the kernel of torch, multiplied out."""
        flat = [tensor for dense in self.dense_weights() for tensor in dense]
        states = tuple(torch.stack([state[part] for state in self.states]) for part in range(2))
        common = (flat, len(self.directions[0].biases) > 0, 1, 0.0, self.training, len(self.states) == 2)
        if self.rows.sizes is None:
            y, h, c = torch.lstm(self.x, states, *common, False)
        else:
            y, h, c = torch.lstm(self.x, self.rows.sizes, states, *common)
        if h.dim() == 4:  # torch 2.10 exports the states with one dimension too many
            h, c = h.view_as(states[0]), c.view_as(states[1])
        return y, [(h[place], c[place]) for place in range(len(h))]

    def _operands(self, place: int, way: str, dtype: torch.dtype) -> Operands:
        """What a step is multiplied with, differentiable."""
        weights = self.directions[place].operands(dtype)
        if way == FACTORISED:
            return weights
        inputs, hidden, *_ = self._dense(place)
        return Operands(
            inputs=Product(operands=(inputs.to(dtype).T,)),
            hidden=Product(operands=(hidden.to(dtype).T,)),
            bias=weights.bias,
            projection=weights.projection,
        )

    def _dense(self, place: int) -> tuple[Tensor, ...]:
        """The multiplied-out weights, as `torch.lstm` wants them; kept if anything is."""
        dense: tuple[Tensor, ...] | None = self._kept(("dense", FUSED, place))
        if dense is None:
            dense = self.directions[place].dense()
            self._keep(("dense", FUSED, place), dense)
        return dense

    def _kept(self, key: Hashable) -> Any:
        return None if self.made is None else self.made.get(key)

    def _keep(self, key: Hashable, value: object) -> None:
        if self.made is not None:
            self.made[key] = value

    @property
    def _sizes(self) -> tuple[Hashable, ...]:
        """What a choice is remembered for."""
        return bucket(self.rows.steps), bucket(self.rows.batch), self.x.dtype

    def _traced_way(self, execution: str) -> str:
        """The way that is recorded: step by step only when it is asked for, since every step is written out then."""
        cores = any(not weights.is_dense for weights in self.directions)
        if self.rows.steps > 1 or self.rows.sizes is not None:
            return FACTORISED if execution == "factorised" and cores else FUSED
        own, dense = (
            sum(work.hidden + work.inputs for work in side) for side in zip(*map(_work, self.directions), strict=True)
        )
        pays = execution == "factorised" or (execution != "materialised" and own < dense)
        return FACTORISED if pays and cores else LOOP

    def _suitable(self, execution: str) -> str:
        """The way to run, by measurement where there is a choice and nothing is recorded."""
        work = [_work(weights) for weights in self.directions]
        seconds = partial(
            sequence_seconds,
            self.rows.steps,
            self.rows.batch,
            self.states[0][1].shape[-1],
            itemsize=self.x.dtype.itemsize,
            trained=self.made is None,
        )
        cores, dense = ([one[part] for one in work] for part in range(2))
        modelled = {FACTORISED: seconds(cores, fused=False), FUSED: seconds(dense, fused=True)}
        if self.made is not None:
            modelled[LOOP] = seconds(dense, fused=False)
        if all(weights.is_dense for weights in self.directions):  # a level that was left dense, in a layer that was not
            del modelled[FACTORISED]
            execution = MODELLED if execution == "factorised" else execution
        candidates = {
            way: Candidate(mode=_MODES[way], modelled_s=one, run=None if self.made is None else partial(self.run, way))
            for way, one in modelled.items()
        }
        shapes = (self.directions[0].input_size, self.directions[0].projection is not None, *cores)
        return choose(candidates, execution, ("lstm", *self._sizes, self.x.device.type, shapes))

    def _keep_only(self, way: str) -> None:
        """Let go of what was made to measure other ways, but for what inputs of other sizes take."""
        made = self.made or {}
        kept = list(made.items())  # at once: another thread may add to it
        ways = {way, *(value for key, value in kept if isinstance(key, tuple) and key[0] == "way")}
        for key, _ in kept:
            of = ({FUSED, LOOP} if key[0] == "dense" else {key[1]}) if isinstance(key, tuple) else ways
            if isinstance(key, tuple) and key[0] in _DERIVED and not of & ways:
                made.pop(key, None)


def _work(weights: DirectionWeights) -> tuple[Work, Work]:
    """The work with the cores, and with the multiplied-out weights."""
    inputs, hidden = weights.sizes()
    rows, columns = weights.shape
    return (
        Work(inputs=inputs[0], hidden=hidden[0], entries=hidden[1]),
        Work(inputs=rows * weights.input_size, hidden=rows * columns, entries=rows * columns),
    )
