"""What is known of modules beside the names and shapes of their weights: their classes, a configuration, ties."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from mpocompress.checkpoint.checkpoint import TensorInfo
from mpocompress.layers.kinds import ModuleKind, class_kind, is_conv1d_by_config, short_class, ties_embeddings
from mpocompress.layers.specs import KindFrom

_EMBEDDING = re.compile(r"(^|[._])(\w*emb(ed(ding)?s?)?|wte|wpe|lookup|codebook|vocab\w*)([._]|$)", re.IGNORECASE)
_HEAD = re.compile(
    r"(^|\.)(\w*head|decoder|generator|classifier|out(put)?(_(layer|projection))?|(proj|fc|embed)_out|to_logits)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known beside the names and shapes of the tensors.

    Args:
        classes: module path -> full name of its class, as the file records it.
        model: the same, from the user's own model.
        config: what config.json beside the weights says.
        ties: names that the file left out -> the tensor that holds their values.
    """

    classes: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What a module is by its class.

    Args:
        kind: what it is.
        kind_from: who says so.
        class_name: the class, as its users write it.
    """

    kind: ModuleKind
    kind_from: KindFrom
    class_name: str


class Witness:
    """Answers, about one state dict, what names and shapes alone do not tell.

    Args:
        tensors: every tensor of the state dict.
        evidence: what is known beside them.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo], evidence: Evidence) -> None:
        self._tensors = tensors
        self._evidence = evidence
        self._aliases: dict[str, list[str]] = {}
        self._ties_embeddings = ties_embeddings(evidence.config)
        self._embeddings: dict[tuple[int, ...], str] = {}
        straight: set[str] = set()
        transposed: set[str] = set()
        for name, info in tensors.items():
            if info.alias_of is not None:
                self._aliases.setdefault(info.alias_of, []).append(name)
            module, _, leaf = name.rpartition(".")
            if leaf != "weight" or len(info.shape) != 2:
                continue
            if self._is_embedding(name):
                self._embeddings.setdefault(info.shape, name)
            bias = self._bias(module)
            if bias is not None and info.shape[0] != info.shape[1]:
                (transposed if bias.shape == (info.shape[1],) else straight).add(module.rpartition(".")[2])
        self._transposed = {one for one in transposed - straight if not one.isdecimal()}
        for name, kept in evidence.ties.items():
            if name not in tensors and kept in tensors:
                self._aliases.setdefault(tensors[kept].alias_of or kept, []).append(name)

    def aliases(self, name: str) -> tuple[str, ...]:
        """The other names of a tensor, with those that the file left out.

        Args:
            name: the name that holds the values.

        Returns:
            The names; empty where it is not tied.
        """
        return tuple(self._aliases.get(name, ()))

    def ruling(self, module: str) -> Ruling | None:
        """What a module is by its class.

        Args:
            module: its path.

        Returns:
            The ruling of the surest source; None where no class is known, or only one that says nothing.
        """
        sources: tuple[tuple[Mapping[str, str], KindFrom], ...] = (
            (self._evidence.classes, "recorded class"),
            (self._evidence.model, "model"),
        )
        for classes, kind_from in sources:
            name = classes.get(module, "")
            kind = class_kind(name)
            if kind is not None:
                return Ruling(kind=kind, kind_from=kind_from, class_name=short_class(name))
        return None

    def embedding(self, name: str) -> str:
        """Why a tensor is an embedding, or the same as one.

        Args:
            name: the name that holds the values.

        Returns:
            The reason; empty when it is not one.
        """
        aliases = self.aliases(name)
        names = (name, *aliases)
        tied = f", tied to {aliases[0]}" if aliases else ""
        for one in names:
            ruling = self.ruling(one.rpartition(".")[0])
            if ruling is not None and ruling.kind == "embedding":
                return f"an embedding ({ruling.class_name}){tied}"
        if any(self._is_embedding(one) for one in names) or self._is_tied_head(names):
            return f"an embedding{tied}"
        return self._tied_by_config(name)

    def conv1d(self, module: str, shape: tuple[int, ...]) -> KindFrom | None:
        """Whether the weight of a module of unknown class is that of a Conv1D, which holds (inputs, outputs).

        Args:
            module: its path.
            shape: the shape of its weight.

        Returns:
            From where that is known; None when it is not one.
        """
        bias = self._bias(module)
        if bias is not None and bias.shape != (shape[1],):
            return None
        if is_conv1d_by_config(module, self._evidence.config):
            return "config"
        square = shape[0] == shape[1]
        if bias is not None and (not square or module.rpartition(".")[2] in self._transposed):
            return "name and shape"
        return None

    def _bias(self, module: str) -> TensorInfo | None:
        return self._tensors.get(f"{module}.bias" if module else "bias")

    def _is_embedding(self, name: str) -> bool:
        """Whether a weight of unknown class is called an embedding, and has no bias."""
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or self._bias(module) is not None:
            return False
        ruling = self.ruling(module)
        return _EMBEDDING.search(module) is not None if ruling is None else ruling.kind == "embedding"

    def _is_tied_head(self, names: tuple[str, ...]) -> bool:
        """Whether tied weights of unknown class are those of an embedding and of the layer that gives its words out."""
        modules = [name.rpartition(".")[0] for name in names if name.endswith("weight")]
        if len(modules) < len(names) or len(modules) < 2 or any(self.ruling(module) for module in modules):
            return False
        words, width = self._tensors[names[0]].shape
        heads = sum(_HEAD.search(module) is not None for module in modules)
        return words >= width and 0 < heads < len(modules)

    def _tied_by_config(self, name: str) -> str:
        """Why the configuration makes a weight the embedding, though the file holds it by itself; empty otherwise."""
        module, _, leaf = name.rpartition(".")
        if not self._ties_embeddings or leaf != "weight" or _HEAD.search(module) is None:
            return ""
        embedding = self._embeddings.get(self._tensors[name].shape)
        if embedding is None:
            return "" if self._embeddings else "the embedding, by tie_word_embeddings in config.json"
        return f"tied to {embedding} by tie_word_embeddings in config.json"
