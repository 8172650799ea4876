"""Trees of tensors: registered and unregistered containers, packed sequences, and the paths to leaves."""

from __future__ import annotations

from collections import OrderedDict, UserDict, deque
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import register_dataclass

from mpocompress.user.pytree import leaves, leaves_with_paths, map_leaves, tensors


class Pair(NamedTuple):
    x: Any
    y: Any


class Batch(list[Any]):
    """A list of a type that torch does not know."""


class Fields(dict[str, Any]):
    """A dict of a type that torch does not know."""


@dataclass
class Registered:
    x: Any


@dataclass
class Unregistered:
    x: Any


register_dataclass(Registered)

TREES: list[tuple[Any, type]] = [
    ([1, 2], list),
    ((1, 2), tuple),
    ({"a": 1, "b": 2}, dict),
    (OrderedDict(a=1, b=2), OrderedDict),
    (deque([1, 2]), deque),
    (Pair(1, 2), Pair),
    (Batch([1, 2]), Batch),
    (Registered([1, 2]), Registered),
    (Fields(a=1, b=2), dict),
    (UserDict(a=1, b=2), dict),
    (MappingProxyType({"a": 1, "b": 2}), dict),
]


@pytest.mark.parametrize(("tree", "kind"), TREES, ids=[type(tree).__name__ for tree, _ in TREES])
def test_every_container_is_opened_and_rebuilt_inside_every_other(tree: Any, kind: type) -> None:
    assert list(leaves(tree)) == [1, 2]
    mapped = map_leaves(lambda leaf: leaf + 10, tree)
    assert type(mapped) is kind
    assert list(leaves(mapped)) == [11, 12]
    for outer, _ in TREES:
        nested = map_leaves({1: tree, 2: 2}.__getitem__, outer)
        assert list(leaves(nested)) == [1, 2, 2]
        assert list(leaves(map_leaves(lambda leaf: leaf + 10, nested))) == [11, 12, 12]
        assert [leaf for _, leaf in leaves_with_paths(nested)] == [1, 2, 2]


def test_what_is_no_container_is_a_leaf() -> None:
    others = (None, "text", torch.ones(2), Unregistered([1]))
    for leaf in others:
        assert list(leaves(leaf)) == [leaf]
        assert list(leaves_with_paths(leaf)) == [((), leaf)]
        assert map_leaves(lambda value: value, leaf) is leaf


def test_a_mapped_tree_shares_no_container_with_the_first() -> None:
    tree = {"a": [torch.ones(2)]}
    mapped = map_leaves(torch.clone, tree)
    mapped["a"][0].zero_()
    assert float(tree["a"][0].sum()) == 2


def test_packed_sequences_are_one_leaf_to_map_and_their_tensors_to_read() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    seen: list[object] = []
    map_leaves(seen.append, [packed])
    assert [type(leaf) for leaf in seen] == [PackedSequence]
    assert [len(tensor) for tensor in tensors([packed])] == [5, 3]


def test_tensors_leaves_out_everything_else() -> None:
    tree = {"a": (torch.zeros(1), None, 3), "b": UserDict(c=torch.zeros(2))}
    assert [len(tensor) for tensor in tensors(tree)] == [1, 2]


def test_a_path_has_keys_and_positions() -> None:
    tree = {"a": [1, {"b": 2}], "c": UserDict(d=3), "e": Pair(4, 5), "f": Registered(6)}
    assert dict(leaves_with_paths(tree)) == {
        ("a", 0): 1,
        ("a", 1, "b"): 2,
        ("c", "d"): 3,
        ("e", 0): 4,
        ("e", 1): 5,
        ("f", 0): 6,
    }


def test_the_first_key_comes_first_in_its_own_mapping_only() -> None:
    tree = [{"h": 1, "logits": 2}, {"logits": 3, "h": 4}]
    assert [leaf for _, leaf in leaves_with_paths(tree, first="logits")] == [2, 1, 3, 4]
    assert [leaf for _, leaf in leaves_with_paths({"h": tree, "logits": 5}, first="logits")] == [5, 2, 1, 3, 4]


def test_an_output_of_transformers_is_rebuilt_as_it_was() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    output = outputs.BaseModelOutput(last_hidden_state=torch.ones(2), hidden_states=(torch.ones(1), torch.ones(1)))
    mapped = map_leaves(lambda leaf: leaf + 1 if isinstance(leaf, Tensor) else leaf, output)
    assert type(mapped) is outputs.BaseModelOutput
    assert [float(tensor.sum()) for tensor in tensors(mapped)] == [4, 2, 2]
    assert [path for path, _ in leaves_with_paths(output)] == [
        ("last_hidden_state",),
        ("hidden_states", 0),
        ("hidden_states", 1),
    ]
