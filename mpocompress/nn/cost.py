"""Cost model of a layer: estimated seconds on a typical processor core, to compare ways to run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OPERATIONS_PER_S = 6e10
"""Multiplications and additions of a product with many rows."""
BYTES_PER_S = 2.5e10
"""Reading a weight that does not fit into a fast cache."""
CALL_S = 2e-6
GATE_S = 3e-9
"""Gate arithmetic for one element of the cell state."""
LOOP_STEP_S, FUSED_STEP_S = 9e-6, 4e-6
TRAINED_LOOP_STEP_S, TRAINED_FUSED_STEP_S = 6e-5, 1.5e-5
"""Overhead of a step in addition to its products; in training, forward and backward together."""
TRAINED_PRODUCTS = 3
"""Products of a training step for each one of a forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The products of one direction of an LSTM, for one row of a batch.

    Args:
        inputs: multiplications with the inputs.
        hidden: multiplications with the outputs of the previous step.
        entries: entries of the operands that every step reads.
    """

    inputs: int
    hidden: int
    entries: int


def product_seconds(rows: int, multiplications: int, entries: int, itemsize: int) -> float:
    """Estimate the seconds of a product, limited by either arithmetic or memory.

    Args:
        rows: rows of the batch.
        multiplications: multiplications for one row.
        entries: entries of the operands.
        itemsize: bytes of an entry.
    """
    return CALL_S + max(2 * rows * multiplications / OPERATIONS_PER_S, entries * itemsize / BYTES_PER_S)


def sequence_seconds(
    steps: int, batch: int, hidden: int, work: Sequence[Work], *, itemsize: int, fused: bool, trained: bool
) -> float:
    """Estimate the seconds of one level of an LSTM over a sequence.

    Args:
        steps: length of the sequence.
        batch: rows of a step.
        hidden: size of the cell state.
        work: one element per direction.
        itemsize: bytes of an entry of an operand.
        fused: whether torch's own kernel runs.
        trained: whether the time is that of forward and backward.
    """
    products = TRAINED_PRODUCTS if trained else 1
    call = (
        (TRAINED_FUSED_STEP_S if fused else TRAINED_LOOP_STEP_S) if trained else FUSED_STEP_S if fused else LOOP_STEP_S
    )
    total = 0.0
    for direction in work:
        step = product_seconds(batch, direction.hidden, direction.entries, itemsize) * products
        total += steps * (step + call + batch * hidden * GATE_S * products)
        total += product_seconds(steps * batch, direction.inputs, direction.entries, itemsize) * products
        # The fused kernel reorders the weights at every call; in training they are also materialised at every call.
        if fused:
            total += (direction.inputs + direction.hidden) * itemsize / BYTES_PER_S * (2 if trained else 1)
    return total
