"""Classify the weights of a state dict: which layer each belongs to, or why it is not compressed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from mpocompress.checkpoint.checkpoint import TensorInfo
from mpocompress.layers.grouping import LayerKey
from mpocompress.layers.kinds import ModuleKind, class_kind, is_conv1d_by_config, short_class, ties_embeddings
from mpocompress.layers.names import LSTM_GATES
from mpocompress.layers.specs import KindFrom, LayerKind

_EMBEDDING = re.compile(r"(^|[._])(\w*emb(ed(ding)?s?)?|wte|wpe|lookup|codebook|vocab\w*)([._]|$)", re.IGNORECASE)
_HEAD = re.compile(
    r"(^|\.)(\w*head|decoder|generator|classifier|out(put)?(_(layer|projection))?|(proj|fc|embed)_out|to_logits)$"
)
_OTHER_GATES: Mapping[float, str] = {3: "GRU", 1: "plain RNN"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What is known about a model beside the names and shapes of its tensors.

    Args:
        recorded_classes: module path -> full name of its class, as the file records it.
        model_classes: the same, from the user's model.
        config: content of the config.json beside the weights.
        ties: names that the file omits -> the tensor that holds their values.
    """

    recorded_classes: Mapping[str, str] = field(default_factory=dict)
    model_classes: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleClass:
    """The class of a module.

    Args:
        kind: kind of the module.
        kind_from: source of the class.
        name: the class, as its users write it.
    """

    kind: ModuleKind
    kind_from: KindFrom
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """The layer that a weight belongs to.

    Args:
        kind: kind of the layer.
        kind_from: source of that knowledge.
        reason: why the weight is not compressed; empty if it is.
    """

    kind: LayerKind = "linear"
    kind_from: KindFrom = "name and shape"
    reason: str = ""


class LayerClassifier:
    """Classifies the weights of one state dict.

    The kind of a layer comes from the most reliable source that knows it: the class recorded in the file, the class in
    the user's model, the configuration beside the weights, then name and shape.

    Args:
        tensors: every tensor of the state dict.
        hints: what is known beside them.
        unsupported: tensor name -> why a weight in this form cannot be compressed.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo], hints: Hints, unsupported: Mapping[str, str]) -> None:
        self._tensors = tensors
        self._hints = hints
        self._unsupported = unsupported
        self._ties_embeddings = ties_embeddings(hints.config)
        self._aliases: dict[str, list[str]] = {}
        self._embeddings: dict[tuple[int, ...], str] = {}  # shape -> the first embedding of that shape
        for name, info in tensors.items():
            if info.alias_of is not None:
                self._aliases.setdefault(info.alias_of, []).append(name)
            if len(info.shape) == 2 and self._is_embedding(name):
                self._embeddings.setdefault(info.shape, name)
        for name, stored in hints.ties.items():
            if name not in tensors and stored in tensors:
                self._aliases.setdefault(tensors[stored].alias_of or stored, []).append(name)
        self._transposed = self._transposed_names()

    def aliases(self, name: str) -> tuple[str, ...]:
        """Return the other names of a tensor, including those that the file omits.

        Args:
            name: the name that holds the values.
        """
        return tuple(self._aliases.get(name, ()))

    def embedding(self, name: str) -> str:
        """Return why a tensor is an embedding, or the same as one; empty if it is not.

        Args:
            name: the name that holds the values.
        """
        aliases = self.aliases(name)
        names = (name, *aliases)
        tied = f", tied to {aliases[0]}" if aliases else ""
        for alias in names:
            module_class = self._module_class(alias.rpartition(".")[0])
            if module_class is not None and module_class.kind == "embedding":
                return f"an embedding ({module_class.name}){tied}"
        if any(map(self._is_embedding, names)) or self._is_tied_head(names):
            return f"an embedding{tied}"
        return self._tied_by_config(name)

    def classify(self, name: str, key: LayerKey) -> Classification:
        """Classify a matrix.

        Args:
            name: its name.
            key: the layer that its name belongs to.
        """
        module_class = self._module_class(key.layer)
        if module_class is not None and module_class.kind in ("other", "embedding"):
            return Classification(reason=f"a weight of {module_class.name}, which is not compressed")
        if key.recurrent:
            is_lstm = module_class is not None and module_class.kind in ("lstm", "lstm_cell")
            return Classification(
                kind=key.kind,
                kind_from=module_class.kind_from if module_class is not None and is_lstm else "name and shape",
                reason=self._not_an_lstm(key),
            )
        if key.suffix != "weight" or (module_class is not None and module_class.kind not in ("linear", "conv1d")):
            return Classification(reason="not an LSTM or Linear weight by its name")
        return self._linear_or_conv1d(name, key, module_class)

    def _linear_or_conv1d(self, name: str, key: LayerKey, module_class: ModuleClass | None) -> Classification:
        shape, bias = self._tensors[name].shape, self._tensors.get(key.name("bias"))
        if module_class is None:
            conv1d_from = self._conv1d(key.layer, shape)
            is_conv1d, kind_from = conv1d_from is not None, conv1d_from or "name and shape"
        else:
            is_conv1d, kind_from = module_class.kind == "conv1d", module_class.kind_from
        outputs = shape[1] if is_conv1d else shape[0]
        if bias is not None and bias.shape != (outputs,):
            layer = "Conv1D" if is_conv1d else "Linear"
            return Classification(reason=f"its bias of shape {bias.shape} does not fit a {layer} layer")
        return Classification(kind="conv1d" if is_conv1d else "linear", kind_from=kind_from)

    def _not_an_lstm(self, key: LayerKey) -> str:
        """Why recurrent weights are not those of an LSTM, whichever of them are selected; empty if they are."""
        hidden, projection, inputs = (self._tensors.get(key.name(part)) for part in ("hh", "hr", "ih"))
        if hidden is None or len(hidden.shape) != 2:
            path, _, leaf = key.name("hh").rpartition(".")
            inside = f"{path}.parametrizations.{leaf}." if path else f"parametrizations.{leaf}."
            pieces = (f"{inside}original0", f"{inside}original", *(key.name("hh") + end for end in ("_v", "_orig")))
            reason = next((self._unsupported[piece] for piece in pieces if piece in self._unsupported), "")
            return f"its weight_hh is {reason}" if reason else "an LSTM weight without its weight_hh"
        if projection is not None and len(projection.shape) != 2:
            return f"its weight_hr of shape {projection.shape} does not fit an LSTM"
        size = projection.shape[1] if projection is not None else hidden.shape[1]
        gates = hidden.shape[0] / size if size else 0.0
        if gates != LSTM_GATES:
            layer = _OTHER_GATES.get(gates, "layer of unknown kind")
            return f"a {layer}, by {hidden.shape[0]} rows to a hidden size of {size}: only LSTM is compressed"
        if inputs is not None and inputs.shape[:1] != hidden.shape[:1]:
            return "weight_ih and weight_hh have different numbers of rows"
        return ""

    def _module_class(self, module: str) -> ModuleClass | None:
        """The class of a module by the most reliable source; None if none is known, or it does not tell the kind."""
        sources: tuple[tuple[Mapping[str, str], KindFrom], ...] = (
            (self._hints.recorded_classes, "recorded class"),
            (self._hints.model_classes, "model"),
        )
        for classes, kind_from in sources:
            name = classes.get(module, "")
            kind = class_kind(name)
            if kind is not None:
                return ModuleClass(kind=kind, kind_from=kind_from, name=short_class(name))
        return None

    def _conv1d(self, module: str, shape: tuple[int, ...]) -> KindFrom | None:
        """Whether a module of unknown class is a Conv1D, whose weight has shape (inputs, outputs); the source if so."""
        bias = self._bias(module)
        if bias is not None and bias.shape != (shape[1],):
            return None
        if is_conv1d_by_config(module, self._hints.config):
            return "config"
        square = shape[0] == shape[1]
        if bias is not None and (not square or module.rpartition(".")[2] in self._transposed):
            return "name and shape"
        return None

    def _transposed_names(self) -> set[str]:
        """Last parts of module names whose weights, where they are not square, all fit their biases transposed."""
        straight: set[str] = set()
        transposed: set[str] = set()
        for name, info in self._tensors.items():
            module, _, leaf = name.rpartition(".")
            bias = self._bias(module)
            if leaf == "weight" and len(info.shape) == 2 and bias is not None and info.shape[0] != info.shape[1]:
                (transposed if bias.shape == (info.shape[1],) else straight).add(module.rpartition(".")[2])
        return {name for name in transposed - straight if not name.isdecimal()}

    def _bias(self, module: str) -> TensorInfo | None:
        return self._tensors.get(f"{module}.bias" if module else "bias")

    def _is_embedding(self, name: str) -> bool:
        """Whether a weight is that of an embedding, by its class or else by its name and the lack of a bias."""
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or self._bias(module) is not None:
            return False
        module_class = self._module_class(module)
        return _EMBEDDING.search(module) is not None if module_class is None else module_class.kind == "embedding"

    def _is_tied_head(self, names: tuple[str, ...]) -> bool:
        """Whether tied weights of unknown class are those of an embedding and of the output layer over its words."""
        modules = [name.rpartition(".")[0] for name in names if name.endswith("weight")]
        if len(modules) < len(names) or len(modules) < 2 or any(map(self._module_class, modules)):
            return False
        words, width = self._tensors[names[0]].shape
        heads = sum(_HEAD.search(module) is not None for module in modules)
        return words >= width and 0 < heads < len(modules)

    def _tied_by_config(self, name: str) -> str:
        """Why a weight is the embedding according to the configuration, although the file stores it; or empty."""
        module, _, leaf = name.rpartition(".")
        if not self._ties_embeddings or leaf != "weight" or _HEAD.search(module) is None:
            return ""
        embedding = self._embeddings.get(self._tensors[name].shape)
        if embedding is None:
            return "" if self._embeddings else "the embedding, by tie_word_embeddings in config.json"
        return f"tied to {embedding} by tie_word_embeddings in config.json"
