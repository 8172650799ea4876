"""The names of weights, matrices, cores and scales."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

LSTM_GATES = 4


JOINT = "weight_joint"
"""Replaces `weight_ih` and `weight_hh` in the name of a joint matrix."""


RECURRENT = re.compile(r"^(?:(?P<layer>.*)\.)?weight_(?P<part>ih|hh|hr)(?P<level>_l\d+)?(?P<reverse>_reverse)?$")
"""The names that PyTorch gives to the weights of LSTM, GRU and RNN layers and cells."""


def is_recurrent(name: str) -> bool:
    """Tell whether a name is that of a weight of an LSTM, GRU or RNN.

    Example:
        >>> is_recurrent("encoder.weight_hh_l0_reverse"), is_recurrent("fc.weight")
        (True, False)
    """
    return RECURRENT.match(name) is not None


def is_projection(name: str) -> bool:
    """Tell whether a name is that of the projection of an LSTM, the one weight whose rows are not those of the gates.

    Example:
        >>> is_projection("encoder.weight_hr_l0"), is_projection("encoder.weight_hh_l0")
        (True, False)
    """
    match = RECURRENT.match(name)
    return match is not None and match["part"] == "hr"


def core_name(matrix: str, site: int) -> str:
    """Return the name of one core in a compressed checkpoint.

    Args:
        matrix: name of the matrix.
        site: number of the site, from 0.

    Example:
        >>> core_name("lstm.weight_hh_l0", 1)
        'lstm.weight_hh_l0.core.1'
    """
    return f"{matrix}.core.{site}"


def scale_name(core: str) -> str:
    """Return the name of the scales of an int8 core.

    Args:
        core: name of the core.

    Example:
        >>> scale_name("fc.weight.core.0")
        'fc.weight.core.0.scale'
    """
    return f"{core}.scale"


def joint_name(weight_ih: str) -> str:
    """Return the name of the joint matrix [W_ih W_hh] of an LSTM layer, with `weight_joint` in place of `weight_ih`.

    Args:
        weight_ih: name of its input-to-hidden weight.

    Example:
        >>> joint_name("encoder.weight_ih_l0_reverse")
        'encoder.weight_joint_l0_reverse'
    """
    head, _, tail = weight_ih.rpartition("weight_ih")
    return f"{head}{JOINT}{tail}"


def matches(pattern: str, name: str) -> bool:
    """Tell whether `pattern` matches `name`, as a glob or exactly.

    Args:
        pattern: a shell glob, case sensitive.
        name: name of a layer or tensor.

    Example:
        >>> matches("lstm*", "lstm.weight_hh_l0"), matches("layers[0]", "layers[0]")
        (True, True)
    """
    return name == pattern or fnmatchcase(name, pattern)
