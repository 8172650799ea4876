"""Nested arguments and outputs of models, as trees of tensors.

`torch.utils._pytree` flattens and rebuilds lists, tuples, dicts, named tuples and every type registered with it, such
as the output classes of transformers. Unregistered mappings and subclasses of list and tuple are opened here; the
`UserDict` that a tokenizer returns is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map


def map_leaves(function: Callable[[Any], Any], tree: object) -> Any:
    """Rebuild a tree with a function applied to every leaf.

    Args:
        function: maps a leaf; packed sequences are leaves, because their parts depend on each other.
        tree: tensors and other values in lists, tuples, mappings and registered types.

    Returns:
        The same tree of new leaves; a mapping of an unregistered type becomes a dict.

    Example:
        >>> map_leaves(lambda number: number + 1, {"a": [1, 2], "b": (3,)})
        {'a': [2, 3], 'b': (4,)}
    """

    def mapped(leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence):
            return function(leaf)
        if isinstance(leaf, Mapping):
            return {key: map_leaves(function, value) for key, value in leaf.items()}
        if isinstance(leaf, list | tuple):
            return type(leaf)(map_leaves(function, value) for value in leaf)
        return function(leaf)

    return tree_map(mapped, tree, is_leaf=lambda node: isinstance(node, PackedSequence))


def leaves(tree: object) -> Iterator[Any]:
    """Yield every leaf of a tree, in order; the parts of packed sequences are leaves.

    Args:
        tree: as for `map_leaves`.

    Example:
        >>> list(leaves({"a": [1, 2], "b": (3,)}))
        [1, 2, 3]
    """
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Mapping):
            yield from leaves(list(leaf.values()))
        elif isinstance(leaf, list | tuple):
            yield from leaves(list(leaf))
        else:
            yield leaf


def tensors(tree: object) -> Iterator[Tensor]:
    """Yield every tensor of a tree, in order, those of packed sequences included.

    Args:
        tree: as for `map_leaves`.

    Example:
        >>> import torch
        >>> [tuple(tensor.shape) for tensor in tensors((torch.ones(2), None, {"h": torch.ones(1)}))]
        [(2,), (1,)]
    """
    return (leaf for leaf in leaves(tree) if isinstance(leaf, Tensor))


def leaves_with_paths(
    tree: object, *, first: str | None = None, path: tuple[object, ...] = ()
) -> Iterator[tuple[tuple[object, ...], Any]]:
    """Yield every leaf of a tree with its path, in order.

    Args:
        tree: as for `map_leaves`.
        first: key whose value comes before the others of its mapping.
        path: prefix of all paths.

    Yields:
        The keys of mappings and the positions in other containers that lead to the leaf, and the leaf.

    Example:
        >>> list(leaves_with_paths({"a": [1, 2], "logits": 3}, first="logits"))
        [(('logits',), 3), (('a', 0), 1), (('a', 1), 2)]
    """
    if isinstance(tree, Mapping):
        children: list[tuple[object, Any]] = sorted(tree.items(), key=lambda item: item[0] != first)
    elif isinstance(tree, list | tuple):
        children = list(enumerate(tree))
    else:
        children = list(enumerate(tree_leaves(tree, is_leaf=lambda node: node is not tree)))
        if len(children) == 1 and children[0][1] is tree:
            yield path, tree
            return
    for key, child in children:
        yield from leaves_with_paths(child, first=first, path=(*path, key))
