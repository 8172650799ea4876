"""Match the names of a checkpoint to the names of a model when one side has a common prefix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_MAX_PREFIX_PARTS = 4

Fits = Callable[[str, str], bool]
"""Whether the tensor of a checkpoint name can be that of a model name."""


def align_names(names: Collection[str], model_names: Collection[str], fits: Fits) -> dict[str, str]:
    """Map the names of a checkpoint to those of a model that fit, under the most common prefix.

    Args:
        names: names of a checkpoint.
        model_names: names of a model.
        fits: whether a name of the checkpoint and one of the model can be the same tensor.

    Returns:
        Checkpoint name -> model name. Of equally common prefixes the shortest is used, and none if possible.

    Example:
        >>> align_names(["module.fc.weight", "module.step"], ["fc.weight"], lambda name, model_name: True)
        {'module.fc.weight': 'fc.weight'}
    """
    pairs = map_names(names, model_names, common_prefixes(names, model_names, fits))
    return {name: model_name for name, model_name in pairs.items() if fits(name, model_name)}


def common_prefixes(names: Collection[str], model_names: Collection[str], fits: Fits) -> tuple[str, str] | None:
    """Find the prefix of the checkpoint's names that the model's names lack, or the reverse.

    Args:
        names: names of a checkpoint.
        model_names: names of a model.
        fits: whether a name of the checkpoint and one of the model can be the same tensor.

    Returns:
        The prefix in the checkpoint and the prefix in the model, at least one of them empty; None if no names fit.

    Example:
        >>> common_prefixes(["fc.weight"], ["net.fc.weight"], lambda name, model_name: True)
        ('', 'net.')
    """
    in_model = {strip_wrappers(name): name for name in model_names}
    in_file = {strip_wrappers(name): name for name in names}
    votes: Counter[tuple[str, str]] = Counter()
    for name in in_file:
        votes.update(
            (head, "") for head, tail in _tails(name) if tail in in_model and fits(in_file[name], in_model[tail])
        )
    for name in in_model:
        votes.update(
            ("", head) for head, tail in _tails(name) if tail in in_file and fits(in_file[tail], in_model[name])
        )
    return max(votes, key=lambda pair: (votes[pair], -len(pair[0]) - len(pair[1]))) if votes else None


def map_names(names: Collection[str], model_names: Collection[str], prefixes: tuple[str, str] | None) -> dict[str, str]:
    """Map the names of a checkpoint to those of a model, whether their tensors fit or not.

    Args:
        names: names of a checkpoint.
        model_names: names of a model.
        prefixes: result of `common_prefixes`.

    Returns:
        Checkpoint name -> model name.

    Example:
        >>> map_names(["fc.weight", "step"], ["net.fc.weight"], ("", "net."))
        {'fc.weight': 'net.fc.weight'}
    """
    if prefixes is None:
        return {}
    in_model = {strip_wrappers(name): name for name in model_names}
    pairs = ((name, in_model.get(rename(name, prefixes) or "")) for name in names)
    return {name: model_name for name, model_name in pairs if model_name is not None}


def rename(name: str, prefixes: tuple[str, str]) -> str | None:
    """Return the name that a model has for a name of a checkpoint.

    Args:
        name: name in the checkpoint.
        prefixes: result of `common_prefixes`.

    Returns:
        The name in the model; None if the prefix is missing.

    Example:
        >>> rename("module.fc._orig_mod.bias", ("module.", "")), rename("step", ("module.", ""))
        ('fc.bias', None)
    """
    file_prefix, model_prefix = prefixes
    bare = strip_wrappers(name)
    return model_prefix + bare.removeprefix(file_prefix) if bare.startswith(file_prefix) else None


def strip_wrappers(name: str) -> str:
    """Return the name of a module or tensor without the parts that torch.compile and FSDP insert.

    Args:
        name: name of a module or tensor.

    Example:
        >>> strip_wrappers("_orig_mod.fc.weight")
        'fc.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _tails(name: str) -> Iterator[tuple[str, str]]:
    """Split a name after 0, 1, 2, ... of its parts."""
    parts = name.split(".")
    for count in range(min(len(parts), _MAX_PREFIX_PARTS + 1)):
        yield "".join(f"{part}." for part in parts[:count]), ".".join(parts[count:])
