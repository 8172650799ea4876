"""Numbers and names as a reader wants them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.text import Text

from mpocompress.layers.specs import Skipped
from mpocompress.mpo.sites import Sites
from mpocompress.planning.target import TARGETS
from mpocompress.reports.compression import Report, Target
from mpocompress.text import printable

_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")

KIND_NAMES = {
    "lstm": ("LSTM", "LSTMs"),
    "lstm_cell": ("LSTM cell", "LSTM cells"),
    "linear": ("Linear", "Linears"),
    "conv1d": ("Conv1D", "Conv1Ds"),
}
"""Layers as a reader calls them: one, and several."""

KIND_SOURCES = {
    "as asked": "as asked",
    "recorded class": "by class in the file",
    "model": "by class in the given model",
    "config": "by config.json",
    "name and shape": "by name and shape",
}
"""How sure it is what a matrix belongs to, the surest first."""

FORMS = {
    "torch-zip": "a torch file",
    "torch-legacy": "a torch file of the form before PyTorch 1.6",
    "torchscript": "a TorchScript archive",
    "torch-export": "an exported program",
    "pickle": "a bare pickle",
    "safetensors": "safetensors",
}


def times(before: int, after: int) -> str:
    """How many times smaller.

    Args:
        before: dense parameters, or bytes.
        after: parameters or bytes now.

    Returns:
        Text.

    Example:
        >>> times(100, 30)
        '3.33x'
    """
    return f"{before / after:.{2 if before < 10 * after else 1}f}x" if after else "-"


def seconds(*values: float) -> str:
    """One duration, or several in the unit of the first.

    Args:
        values: seconds.

    Returns:
        Text.

    Example:
        >>> seconds(0.0123), seconds(0.000085, 0.000091), seconds(2)
        ('12.3 ms', '85.0 - 91.0 us', '2.00 s')
    """
    unit, factor = next((pair for pair in (("s", 1.0), ("ms", 1e3)) if values[0] * pair[1] >= 1), ("us", 1e6))
    return f"{' - '.join(_three_digits(factor * value) for value in values)} {unit}"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def fitted(names: Sequence[str], width: int) -> tuple[list[str], str]:
    """Names made to fit a column: what all of them share is left out, then they are cut, and stay apart.

    Args:
        names: the names.
        width: columns to fit into.

    Returns:
        The shorter names, and a sentence on what whole names look like; empty where these are whole.

    Example:
        >>> fitted(["layer.0.key.weight", "layer.1.value.weight"], 8)
        (['0.key', '1.value'], 'Whole names are layer.NAME.weight.')
        >>> fitted(["encoder.weight"], 8)[0], fitted(["encoder.layer.12.attention.key"], 10)[0]
        (['….weight'], ['12…ion.key'])
        >>> fitted(["one.rnn.weight_ih", "two.rnn.weight_ih", "bias"], 12)[0]
        ['one.rn…ht_ih', 'two.rn…ht_ih', 'bias']
    """
    shown = [printable(name) for name in names]
    pattern = ""
    if len(shown) > 1 and max(map(len, shown)) > width:
        parts = [name.split(".") for name in shown]
        shortest = min(map(len, parts)) - 1
        head = next((place for place in range(shortest) if len({one[place] for one in parts}) > 1), shortest)
        rest = shortest - head
        tail = next((place for place in range(rest) if len({one[-1 - place] for one in parts}) > 1), rest)
        if head + tail:
            whole = [*parts[0][:head], "NAME", *parts[0][len(parts[0]) - tail :]]
            shown = [".".join(one[head : len(one) - tail]) for one in parts]
            pattern = ".".join(whole)
    cut = [_cut(name, width) for name in shown]
    seen = Counter(cut)
    fits = [_cut_inside(name, width) if seen[one] > 1 else one for name, one in zip(shown, cut, strict=True)]
    said = f"Whole names are {pattern}." if pattern else ""
    if fits != shown:
        said = f"{said} What is cut (…) stands whole in a wider terminal, and in --json.".strip()
    return fits, said


def _cut(name: str, width: int) -> str:
    """A name cut to a width: the number of its layer and its end tell it from its neighbours."""
    if len(name) <= width:
        return name
    number = _NUMBER.search(name)
    lost = number is not None and number.start(1) < len(name) - width + 1
    head = f"{number[1]}…" if number is not None and lost and len(number[1]) < width // 2 else "…"
    return head + name[len(head) - width :]


def _cut_inside(name: str, width: int) -> str:
    """A name cut in its middle, where cut at its start it would look like another."""
    start = width // 2
    return name if len(name) <= width else f"{name[:start]}…{name[start + 1 - width :]}"


def labelled(sentence: str, label: str = "Note", style: str = "yellow") -> Text:
    r"""A sentence about a file, which may quote names from it, fit for a terminal.

    Args:
        sentence: the sentence.
        label: what stands in front of it.
        style: of the label.

    Returns:
        Text without escape codes or newlines of the sentence's own.

    Example:
        >>> labelled("left out: a\x1b[31mb").plain
        'Note: left out: a\\x1b[31mb'
    """
    return Text.assemble((f"{label}: ", style), printable(sentence))


def counted(number: int, singular: str, plural: str) -> str:
    """A number with its noun.

    Args:
        number: how many.
        singular: the noun for one.
        plural: the noun for all else.

    Returns:
        Text.

    Example:
        >>> counted(1, "matrix", "matrices"), counted(2, "matrix", "matrices")
        ('1 matrix', '2 matrices')
    """
    return f"{number:,} {singular if number == 1 else plural}"


def shape(dims: tuple[int, ...]) -> str:
    """A shape.

    Args:
        dims: its dimensions.

    Returns:
        Text.

    Example:
        >>> shape((1024, 256))
        '1024x256'
    """
    return "x".join(map(str, dims)) or "scalar"


def sites_label(row_dims: tuple[int, ...], col_dims: tuple[int, ...], anti_aligned: bool) -> str:
    """The short name of a site shape.

    Args:
        row_dims: row dim of each site; empty when dense.
        col_dims: column dim of each site.
        anti_aligned: order of the row index.

    Returns:
        Text, `dense` where there are no sites.

    Example:
        >>> sites_label((8, 1), (1, 4), False)
        'low rank'
    """
    return Sites(row_dims=row_dims, col_dims=col_dims, anti_aligned=anti_aligned).label if row_dims else "dense"


def asked(target: Target) -> str:
    """What was asked for.

    Args:
        target: the target.

    Returns:
        Text.

    Example:
        >>> asked(Target(kind="keep", asked=0.25, achieved=0.249, by_layer={}))
        'keep 0.25'
    """
    kind = TARGETS[target.kind]
    value = "" if target.asked is None else f" {kind.show(target.asked)}"
    layers = printable(", ".join(f"{glob}={bond}" for glob, bond in target.by_layer.items()))
    return f"{kind.title}{value}" + (f" ({layers})" if layers else "")


def achieved(target: Target) -> str:
    """What came out.

    Args:
        target: the target.

    Returns:
        Text.

    Example:
        >>> achieved(Target(kind="keep", asked=0.25, achieved=0.24912, by_layer={}))
        '0.24912'
    """
    return "nothing" if target.achieved is None else TARGETS[target.kind].show_achieved(target.achieved)


def kinds(sources: Iterable[str]) -> str:
    """From where it is known what the matrices are.

    Args:
        sources: the `kind_from` of each.

    Returns:
        Text.

    Example:
        >>> kinds(["name and shape", "recorded class", "name and shape"])
        '1 by class in the file, 2 by name and shape'
    """
    counts = Counter(sources)
    return ", ".join(f"{counts[source]:,} {said}" for source, said in KIND_SOURCES.items() if counts[source])


def skipped(report: Report) -> str:
    """What was passed through, by reason.

    Args:
        report: the report.

    Returns:
        Text.
    """
    totals = report.totals
    return left_alone(report.skipped, totals.dense_parameters - totals.eligible_parameters, totals.dense_parameters)


def left_alone(tensors: Sequence[Skipped], passed: int, parameters: int) -> str:
    """What is not compressed, by reason.

    Args:
        tensors: the tensors.
        passed: their parameters.
        parameters: those of the whole model.

    Returns:
        Text.
    """
    share = passed / parameters if parameters else 0.0
    reasons = Counter(one.reason for one in tensors)
    if not reasons:
        return "nothing"
    said = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    return printable(f"{passed:,} parameters ({share:.1%}) in {counted(len(tensors), 'tensor', 'tensors')}: {said}")
