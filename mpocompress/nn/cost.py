"""A model of what running a layer costs: seconds on an ordinary core, for comparing ways to run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OPERATIONS_PER_S = 6e10
"""Multiplications and additions of a product with many rows."""
BYTES_PER_S = 2.5e10
"""Reading a weight that does not stay in a cache close by."""
CALL_S = 2e-6
GATE_S = 3e-9
"""The arithmetic of the gates for one number of the cell state."""
LOOP_STEP_S, FUSED_STEP_S = 9e-6, 4e-6
TRAINED_LOOP_STEP_S, TRAINED_FUSED_STEP_S = 6e-5, 1.5e-5
"""What a step takes beside its products, forward and backward together in training."""
TRAINED_PRODUCTS = 3
"""Products of a training step for one of a forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The products of one direction of an LSTM, for one row of a batch.

    Args:
        inputs: multiplications with the inputs.
        hidden: multiplications with the outputs of the step before.
        entries: entries of the operands that every step reads.
    """

    inputs: int
    hidden: int
    entries: int


def product_seconds(rows: int, multiplications: int, entries: int, itemsize: int) -> float:
    """Seconds of a product.

    Args:
        rows: rows of the batch.
        multiplications: for one of them.
        entries: entries of the operands.
        itemsize: bytes of one.

    Returns:
        The time that the processor or the memory needs, whichever is longer, and that of the calls.
    """
    return CALL_S + max(2 * rows * multiplications / OPERATIONS_PER_S, entries * itemsize / BYTES_PER_S)


def sequence_seconds(
    steps: int, batch: int, hidden: int, work: Sequence[Work], *, itemsize: int, fused: bool, trained: bool
) -> float:
    """Seconds of one level of an LSTM over a sequence.

    Args:
        steps: length of the sequence.
        batch: rows of a step.
        hidden: size of the cell state.
        work: one for every direction.
        itemsize: bytes of an entry of an operand.
        fused: whether torch's own kernel runs it.
        trained: whether forward and backward.

    Returns:
        The time.
    """
    products = TRAINED_PRODUCTS if trained else 1
    call = (
        (TRAINED_FUSED_STEP_S if fused else TRAINED_LOOP_STEP_S) if trained else FUSED_STEP_S if fused else LOOP_STEP_S
    )
    total = 0.0
    for one in work:
        step = product_seconds(batch, one.hidden, one.entries, itemsize) * products
        total += steps * (step + call + batch * hidden * GATE_S * products)
        total += product_seconds(steps * batch, one.inputs, one.entries, itemsize) * products
        # The fused kernel orders the weights anew at every call; in training they are multiplied out at every call.
        total += (one.inputs + one.hidden) * itemsize / BYTES_PER_S * (2 if trained else 1) if fused else 0.0
    return total
