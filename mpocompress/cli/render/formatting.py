"""Text for numbers, names and targets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.text import Text

from mpocompress.layers.specs import Skipped
from mpocompress.mpo.sites import Sites
from mpocompress.planning.targets import TARGETS
from mpocompress.reports.compression import Report, Target
from mpocompress.text import printable

_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")

KIND_NAMES = {
    "lstm": ("LSTM", "LSTMs"),
    "lstm_cell": ("LSTM cell", "LSTM cells"),
    "linear": ("Linear", "Linears"),
    "conv1d": ("Conv1D", "Conv1Ds"),
}
"""Kind of layer -> singular, plural."""

KIND_SOURCES = {
    "as asked": "as asked",
    "recorded class": "by class in the file",
    "model": "by class in the given model",
    "config": "by config.json",
    "name and shape": "by name and shape",
}
"""Source of the kind of a layer -> text; the most certain first."""

FORMS = {
    "torch-zip": "a torch file",
    "torch-legacy": "a torch file in the format before PyTorch 1.6",
    "torchscript": "a TorchScript archive",
    "torch-export": "an exported program",
    "pickle": "a bare pickle",
    "safetensors": "safetensors",
}
"""Form of a checkpoint -> text."""


def times(before: int, after: int) -> str:
    """Return how many times smaller something is.

    Args:
        before: number of parameters or bytes before.
        after: number after.

    Example:
        >>> times(100, 30)
        '3.33x'
    """
    return f"{before / after:.{2 if before < 10 * after else 1}f}x" if after else "-"


def seconds(*values: float) -> str:
    """Return durations in the unit that suits the first.

    Args:
        values: durations in seconds.

    Example:
        >>> seconds(0.0123), seconds(0.000085, 0.000091), seconds(2)
        ('12.3 ms', '85.0 - 91.0 us', '2.00 s')
    """
    unit, factor = next((pair for pair in (("s", 1.0), ("ms", 1e3)) if values[0] * pair[1] >= 1), ("us", 1e6))
    return f"{' - '.join(_three_digits(factor * value) for value in values)} {unit}"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def fit_names(names: Sequence[str], width: int) -> tuple[list[str], str]:
    """Shorten names to the width of a column, and keep them different.

    The parts that all names share are left out first; then names are cut.

    Args:
        names: the names.
        width: number of columns.

    Returns:
        The shortened names, and a sentence on how to read them; empty if none was shortened.

    Example:
        >>> fit_names(["layer.0.key.weight", "layer.1.value.weight"], 8)
        (['0.key', '1.value'], 'Full names are layer.NAME.weight.')
        >>> fit_names(["encoder.weight"], 8)[0], fit_names(["encoder.layer.12.attention.key"], 10)[0]
        (['….weight'], ['12…ion.key'])
        >>> fit_names(["one.rnn.weight_ih", "two.rnn.weight_ih", "bias"], 12)[0]
        ['one.rn…ht_ih', 'two.rn…ht_ih', 'bias']
    """
    texts = [printable(name) for name in names]
    pattern = ""
    if len(texts) > 1 and max(map(len, texts)) > width:
        parts = [name.split(".") for name in texts]
        shortest = min(map(len, parts)) - 1
        head = next((place for place in range(shortest) if len({each[place] for each in parts}) > 1), shortest)
        rest = shortest - head
        tail = next((place for place in range(rest) if len({each[-1 - place] for each in parts}) > 1), rest)
        if head + tail:
            pattern = ".".join([*parts[0][:head], "NAME", *parts[0][len(parts[0]) - tail :]])
            texts = [".".join(each[head : len(each) - tail]) for each in parts]
    cut = [_cut_start(name, width) for name in texts]
    counts = Counter(cut)
    fitted = [_cut_middle(name, width) if counts[short] > 1 else short for name, short in zip(texts, cut, strict=True)]
    sentence = f"Full names are {pattern}." if pattern else ""
    if fitted != texts:
        sentence = f"{sentence} Names with … are complete in a wider terminal and in --json.".strip()
    return fitted, sentence


def _cut_start(name: str, width: int) -> str:
    """Return the end of a name, after the number of its layer if that is cut off."""
    if len(name) <= width:
        return name
    number = _NUMBER.search(name)
    is_lost = number is not None and number.start(1) < len(name) - width + 1
    head = f"{number[1]}…" if number is not None and is_lost and len(number[1]) < width // 2 else "…"
    return head + name[len(head) - width :]


def _cut_middle(name: str, width: int) -> str:
    """Return the start and the end of a name."""
    start = width // 2
    return name if len(name) <= width else f"{name[:start]}…{name[start + 1 - width :]}"


def labelled(sentence: str, label: str = "Note", style: str = "yellow") -> Text:
    r"""Return a sentence with a label in front; escape codes and newlines in it are escaped.

    Args:
        sentence: the sentence, which may quote names from a file.
        label: the label.
        style: style of the label.

    Example:
        >>> labelled("left out: a\x1b[31mb").plain
        'Note: left out: a\\x1b[31mb'
    """
    return Text.assemble((f"{label}: ", style), printable(sentence))


def counted(number: int, singular: str, plural: str) -> str:
    """Return a number with its noun.

    Args:
        number: the number.
        singular: the noun for 1.
        plural: the noun for all other numbers.

    Example:
        >>> counted(1, "matrix", "matrices"), counted(2, "matrix", "matrices")
        ('1 matrix', '2 matrices')
    """
    return f"{number:,} {singular if number == 1 else plural}"


def shape_text(dims: tuple[int, ...]) -> str:
    """Return a shape as text.

    Args:
        dims: its dimensions.

    Example:
        >>> shape_text((1024, 256))
        '1024x256'
    """
    return "x".join(map(str, dims)) or "scalar"


def sites_label(row_dims: tuple[int, ...], col_dims: tuple[int, ...], anti_aligned: bool) -> str:
    """Return the short name of a site shape; `dense` if there are no sites.

    Args:
        row_dims: row dim of each site.
        col_dims: column dim of each site.
        anti_aligned: order of the row index.

    Example:
        >>> sites_label((8, 1), (1, 4), False)
        'low rank'
    """
    return Sites(row_dims=row_dims, col_dims=col_dims, anti_aligned=anti_aligned).label if row_dims else "dense"


def requested(target: Target) -> str:
    """Return the target that was requested.

    Args:
        target: the target.

    Example:
        >>> requested(Target(kind="keep", requested=0.25, achieved=0.249, bond_by_layer={}))
        'keep 0.25'
    """
    kind = TARGETS[target.kind]
    value = "" if target.requested is None else f" {kind.show(target.requested)}"
    layers = printable(", ".join(f"{glob}={bond}" for glob, bond in target.bond_by_layer.items()))
    return f"{kind.title}{value}" + (f" ({layers})" if layers else "")


def achieved(target: Target) -> str:
    """Return the figure that was achieved.

    Args:
        target: the target.

    Example:
        >>> achieved(Target(kind="keep", requested=0.25, achieved=0.24912, bond_by_layer={}))
        '0.24912'
    """
    return "nothing" if target.achieved is None else TARGETS[target.kind].show_achieved(target.achieved)


def kind_sources(sources: Iterable[str]) -> str:
    """Return how the kinds of the layers are known.

    Args:
        sources: the `kind_from` of each matrix.

    Example:
        >>> kind_sources(["name and shape", "recorded class", "name and shape"])
        '1 by class in the file, 2 by name and shape'
    """
    counts = Counter(sources)
    return ", ".join(f"{counts[source]:,} {text}" for source, text in KIND_SOURCES.items() if counts[source])


def skipped_text(report: Report) -> str:
    """Return the tensors that are not eligible, by reason.

    Args:
        report: the report.
    """
    totals = report.totals
    return skipped_by_reason(
        report.skipped, totals.dense_parameters - totals.eligible_parameters, totals.dense_parameters
    )


def skipped_by_reason(tensors: Sequence[Skipped], parameters: int, total: int) -> str:
    """Return tensors that are not eligible, by reason.

    Args:
        tensors: the tensors.
        parameters: their number of parameters.
        total: number of parameters of the whole model.
    """
    share = parameters / total if total else 0.0
    reasons = Counter(tensor.reason for tensor in tensors)
    if not reasons:
        return "nothing"
    text = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    return printable(f"{parameters:,} parameters ({share:.1%}) in {counted(len(tensors), 'tensor', 'tensors')}: {text}")
