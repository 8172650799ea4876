"""The kind of a module, from the name of its class or the configuration of its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal


def full_name(kind: type) -> str:
    """Return the name of a class with its module, the argument of `class_kind` and `short_class`.

    Example:
        >>> from torch import nn
        >>> full_name(nn.GRU)
        'torch.nn.modules.rnn.GRU'
    """
    return f"{kind.__module__}.{kind.__qualname__}"


ModuleKind = Literal["lstm", "lstm_cell", "linear", "conv1d", "embedding", "other"]


_TORCH_KINDS: Mapping[str, ModuleKind] = {
    "LSTM": "lstm",
    "LSTMCell": "lstm_cell",
    "Linear": "linear",
    "LazyLinear": "linear",
    "NonDynamicallyQuantizableLinear": "linear",  # the output projection of nn.MultiheadAttention
    "Embedding": "embedding",
    "EmbeddingBag": "embedding",
}


_GENERIC = {"torch.nn.modules.module", "torch.nn.modules.container"}


_TRANSFORMERS = {"transformers", "pytorch_transformers", "pytorch_pretrained_bert"}


# The models of transformers that have Conv1D layers, and the names of those; in all others such names are Linear.
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_encoder", "clvp_decoder")


_CONV1D_MODULES = {"c_attn", "q_attn", "c_proj", "c_fc"}


def class_kind(name: str) -> ModuleKind | None:
    """Return the kind of the modules of a class.

    Args:
        name: full name of the class.

    Returns:
        The kind, `other` for a class of torch that is not compressed; None for a class that does not tell the kind.

    Example:
        >>> class_kind("torch.nn.modules.rnn.GRU"), class_kind("transformers.pytorch_utils.Conv1D")
        ('other', 'conv1d')
        >>> class_kind("__main__.Net")
    """
    package, _, leaf = name.rpartition(".")
    if package == "torch.nn" or (package.startswith("torch.nn.modules.") and package not in _GENERIC):
        return _TORCH_KINDS.get(leaf, "other")
    if leaf == "Conv1D" and package.partition(".")[0] in _TRANSFORMERS:
        return "conv1d"
    return None


def short_class(name: str) -> str:
    """Return a class as its users write it: `nn.GRU` for classes of torch, otherwise the full name.

    Args:
        name: full name of the class.

    Example:
        >>> short_class("torch.nn.modules.rnn.GRU")
        'nn.GRU'
    """
    return f"nn.{name.rpartition('.')[2]}" if name.startswith("torch.nn.") else name


def is_conv1d_by_config(module: str, config: Mapping[str, object]) -> bool:
    """Tell whether a module is a Conv1D of transformers, according to the configuration of its model.

    Args:
        module: path of the module.
        config: content of config.json; parts of a composite model have a configuration of their own in it.

    Example:
        >>> is_conv1d_by_config("h.0.attn.c_proj", {"model_type": "gpt2"})
        True
    """
    if module.rpartition(".")[2] not in _CONV1D_MODULES:
        return False
    return any(
        part_config.get("model_type") in _CONV1D_MODELS and (not part or part in module.split(".")[:-1])
        for part, part_config in _configurations(config)
    )


def ties_embeddings(config: Mapping[str, object]) -> bool:
    """Tell whether the output layer is the embedding, according to the content of config.json."""
    return any(part_config.get("tie_word_embeddings") is True for _, part_config in _configurations(config))


def _configurations(config: Mapping[str, object]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield the configuration of the model, under the name "", and those of its parts."""
    yield "", config
    for name, part in config.items():
        if isinstance(part, dict):
            yield name.removesuffix("_config"), part
