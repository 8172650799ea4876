"""The user's selection: the layers to compress, their forms, and their kinds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from mpocompress.errors import SelectionError
from mpocompress.layers.names import LSTM_GATES, is_projection, is_recurrent, matches
from mpocompress.layers.specs import MIN_SIDE
from mpocompress.user.options import check_options, option, option_class

if TYPE_CHECKING:
    from mpocompress.checkpoint.checkpoint import TensorInfo

LSTMChoice = Literal["auto", "joint", "separate"]
ForcedKind = Literal["lstm", "linear", "conv1d", "embedding"]


@option_class
@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which layers to compress, and as what kind of layer.

    Args:
        options: the fields.

    Raises:
        SelectionError: a value out of range, an unknown choice or kind, or one string in place of several globs.

    Example:
        >>> Selection(exclude=("head*",)).min_side
        64
    """

    __module__ = "mpocompress"

    include: tuple[str, ...] = option((), metavar="GLOB", help="Only these layers or tensors.")
    exclude: tuple[str, ...] = option((), metavar="GLOB", help="Leave these layers or tensors dense.")
    kinds: Mapping[str, ForcedKind] = option(
        {},
        flag="--as",
        syntax="kinds",
        choices=get_args(ForcedKind),
        help="Treat tensors as weights of lstm, linear, conv1d or embedding layers.",
        details="A mapping of globs of tensor names to kinds; it overrides the kinds from names and shapes.",
    )
    min_side: int = option(MIN_SIDE, metavar="N", minimum=1, help="Leave matrices with a smaller side dense.")
    lstm: LSTMChoice = option(
        "auto",
        choices=get_args(LSTMChoice),
        help="LSTM weights as one matrix [W_ih W_hh] (joint), as two (separate), or the better of both.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_options(self, SelectionError)


def forced_kinds(tensors: Mapping[str, TensorInfo], selection: Selection) -> dict[str, ForcedKind]:
    """The kind that was asked for, by tensor name.

    Args:
        tensors: every tensor of the state dict.
        selection: what is asked for.

    Returns:
        Tensor name -> kind; of tied tensors, the name that holds the values.

    Raises:
        SelectionError: a glob that matches nothing, or a kind that a tensor cannot be.
    """
    names = list(tensors)
    for what, globs in (("include", selection.include), ("exclude", selection.exclude)):
        for glob in globs:
            if not any(_matches((glob,), name) for name in names):
                raise _nothing_matches(f"{what} pattern {glob!r}", "no layer and no tensor", names)
    forced: dict[str, ForcedKind] = {}
    for glob, kind in selection.kinds.items():
        hits = [name for name in names if matches(glob, name)]
        if not hits:
            raise _nothing_matches(f"kind pattern {glob!r}", "no tensor", names)
        for name in hits:
            _check_kind(name, tensors[name], kind)
            forced[tensors[name].alias_of or name] = kind
    return forced


def _nothing_matches(where: str, what: str, names: list[str]) -> SelectionError:
    return SelectionError(
        where=where,
        found=f"matches {what}",
        why="a pattern must match at least one",
        action=f"Names look like {', '.join(names[:3])}.",
    )


def _check_kind(name: str, info: TensorInfo, kind: ForcedKind) -> None:
    """Refuse a kind that the shape or the name of a tensor rules out."""
    problem = None
    if len(info.shape) != 2:
        problem = f"a {len(info.shape)}-D tensor"
    elif kind == "lstm" and not is_recurrent(name):
        problem = "a name without weight_ih, weight_hh or weight_hr"
    elif kind == "lstm" and info.shape[0] % LSTM_GATES and not is_projection(name):
        problem = f"shape {info.shape}, whose rows are not those of {LSTM_GATES} gates"
    if problem is not None:
        raise SelectionError(
            where=name,
            found=problem,
            why=f"that cannot be the weight of {'an ' if kind == 'embedding' else 'a '}{kind} layer",
            action="Narrow the pattern.",
        )


def unwanted(names: Collection[str], selection: Selection) -> str:
    """Why a tensor was not asked for under any of its names.

    Args:
        names: its names; more than one where it is tied.
        selection: what is asked for.

    Returns:
        The reason; empty when it was asked for.
    """
    if selection.include and not any(_matches(selection.include, name) for name in names):
        return "not among the selected layers"
    return "excluded by the user" if any(_matches(selection.exclude, name) for name in names) else ""


def _matches(globs: Collection[str], name: str) -> bool:
    """Whether a glob means a tensor, or the layer that it belongs to."""
    layer = name.rpartition(".")[0]
    return any(matches(glob, name) or (bool(layer) and matches(glob, layer)) for glob in globs)
