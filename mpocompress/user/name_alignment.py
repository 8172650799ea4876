"""Names of a checkpoint laid over those of a model, whatever prefixes either has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_DEEPEST_PREFIX = 4

Fits = Callable[[str, str], bool]


def aligned(names: Collection[str], others: Collection[str], fits: Fits) -> dict[str, str]:
    """Names of a checkpoint to those of a model that fit, under the one prefix, on either side, that most share.

    Args:
        names: names of a checkpoint.
        others: names of a model.
        fits: whether what goes by the one name can be what goes by the other.

    Returns:
        Name -> other name. Where several prefixes do, the shortest; the names as they are before any.

    Example:
        >>> aligned(["module.fc.weight", "module.step"], ["fc.weight"], lambda name, other: True)
        {'module.fc.weight': 'fc.weight'}
    """
    found = under_prefixes(names, others, common_prefixes(names, others, fits))
    return {name: other for name, other in found.items() if fits(name, other)}


def common_prefixes(names: Collection[str], others: Collection[str], fits: Fits) -> tuple[str, str] | None:
    """What is to be taken off the names of a checkpoint, or put before them, to get those of a model.

    Args:
        names: names of a checkpoint.
        others: names of a model.
        fits: whether what goes by the one name can be what goes by the other.

    Returns:
        The prefix of the names and that of the others, one of them empty; None where nothing fits.

    Example:
        >>> common_prefixes(["fc.weight"], ["net.fc.weight"], lambda name, other: True)
        ('', 'net.')
    """
    plain = {unwrapped(other): other for other in others}
    whole = {unwrapped(name): name for name in names}
    votes: Counter[tuple[str, str]] = Counter()
    for name in whole:
        votes.update((head, "") for head, tail in _tails(name) if tail in plain and fits(whole[name], plain[tail]))
    for other in plain:
        votes.update(("", head) for head, tail in _tails(other) if tail in whole and fits(whole[tail], plain[other]))
    return max(votes, key=lambda pair: (votes[pair], -len(pair[0]) - len(pair[1]))) if votes else None


def under_prefixes(names: Collection[str], others: Collection[str], prefixes: tuple[str, str] | None) -> dict[str, str]:
    """Names of a checkpoint to those of a model, fitting or not.

    Args:
        names: names of a checkpoint.
        others: names of a model.
        prefixes: as `common_prefixes` gives them.

    Returns:
        Name -> other name.

    Example:
        >>> under_prefixes(["fc.weight", "step"], ["net.fc.weight"], ("", "net."))
        {'fc.weight': 'net.fc.weight'}
    """
    if prefixes is None:
        return {}
    plain = {unwrapped(other): other for other in others}
    pairs = ((name, plain.get(renamed(name, prefixes) or "")) for name in names)
    return {name: other for name, other in pairs if other is not None}


def renamed(name: str, prefixes: tuple[str, str]) -> str | None:
    """One name of a checkpoint as a model would have it.

    Args:
        name: the name.
        prefixes: as `common_prefixes` gives them.

    Returns:
        The name; None where it lacks the prefix.

    Example:
        >>> renamed("module.fc._orig_mod.bias", ("module.", "")), renamed("step", ("module.", ""))
        ('fc.bias', None)
    """
    ours, theirs = prefixes
    bare = unwrapped(name)
    return theirs + bare.removeprefix(ours) if bare.startswith(ours) else None


def unwrapped(name: str) -> str:
    """A name without what torch.compile and FSDP put into it.

    Args:
        name: the name of a module or tensor.

    Returns:
        The name.

    Example:
        >>> unwrapped("_orig_mod.fc.weight")
        'fc.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _tails(name: str) -> Iterator[tuple[str, str]]:
    """A name parted after none, one, two, ... of its words."""
    parts = name.split(".")
    for count in range(min(len(parts), _DEEPEST_PREFIX + 1)):
        yield "".join(f"{part}." for part in parts[:count]), ".".join(parts[count:])
