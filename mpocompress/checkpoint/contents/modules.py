"""Whole modules in a file: their state dict, and the class of every layer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

from mpocompress.checkpoint.lazy_tensors import AnyLazyTensor
from mpocompress.checkpoint.pickles.values import Instance, UnusualTensor

_PARTS = ("_parameters", "_buffers", "_modules")
_SCRIPTED = "__torch__."
_PACKED = "torch.classes."  # objects of C++, such as packed quantized weights
_OF_CPP = "torch.ScriptObject"
_PACKED_WEIGHTS = UnusualTensor(kind="an object that packs quantized weights")
_MANGLED = re.compile(r"___torch_mangle_\d+\.")
_MOST_NAMES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleState:
    """State dict and classes of a module.

    Args:
        tensors: name -> parameter or buffer, as in its state dict.
        classes: path -> full name of the class, of the module itself ("") and of every module in it.
    """

    tensors: dict[Any, Any]
    classes: dict[str, str]


def is_module(value: object) -> TypeGuard[Instance]:
    """Tell whether a value is a pickled or scripted module."""
    if not isinstance(value, Instance):
        return False
    return value.class_name.startswith(_SCRIPTED) or all(isinstance(value.attributes.get(p), dict) for p in _PARTS)


def module_state(module: Instance) -> ModuleState:
    """Return the tensors and classes of a module and all modules in it.

    Args:
        module: a value for which `is_module` holds.

    Returns:
        Its state, in the order of `nn.Module.state_dict`; a shared tensor is listed under each of its names. A part
        that only its own code could convert to tensors is an `UnusualTensor`.

    Raises:
        ValueError: a module that contains itself, two tensors of one name, or more names than any model has.

    Example:
        >>> fc = Instance("torch.nn.modules.linear.Linear")
        >>> fc.attributes.update(_parameters={"weight": UnusualTensor(kind="sparse"), "bias": None})
        >>> fc.attributes.update(_buffers={}, _modules={})
        >>> net = Instance("net.Net", attributes={"_parameters": {}, "_buffers": {}, "_modules": {"fc": fc}})
        >>> list(module_state(net).tensors), module_state(net).classes["fc"]
        (['fc.weight'], 'torch.nn.modules.linear.Linear')
    """
    tensors: dict[Any, Any] = {}
    classes: dict[str, str] = {}
    stack: list[tuple[str, Instance, tuple[int, ...]]] = [("", module, ())]
    while stack:
        path, current, around = stack.pop()
        if id(current) in around or len(classes) + len(tensors) > _MOST_NAMES:
            raise ValueError("a module that contains itself")
        classes[path] = class_name(current)
        for name, tensor in _tensors(current):
            if tensors.setdefault(_join(path, name), tensor) is not tensor:
                raise ValueError(f"two tensors of the name {_join(path, name)}")
        inner = [(_join(path, name), child, (*around, id(current))) for name, child in _modules(current)]
        stack.extend(reversed(inner))
    return ModuleState(tensors=tensors, classes=classes)


def class_name(value: Instance) -> str:
    """Return the full name of the class of an object, without what TorchScript adds to it.

    Example:
        >>> class_name(Instance("__torch__.torch.nn.modules.linear.___torch_mangle_3.Linear"))
        'torch.nn.modules.linear.Linear'
    """
    return _MANGLED.sub("", value.class_name).removeprefix(_SCRIPTED)


def _tensors(module: Instance) -> Iterator[tuple[str, object]]:
    if module.class_name.startswith(_SCRIPTED):
        for name, value in module.attributes.items():
            if isinstance(value, AnyLazyTensor | UnusualTensor):
                yield name, value
            elif isinstance(value, Instance) and _PACKED in value.class_name:
                yield name, _PACKED_WEIGHTS
        return
    for name, value in module.attributes.items():
        if isinstance(value, Instance) and value.class_name == _OF_CPP:
            yield name, _PACKED_WEIGHTS
    for name, value in module.attributes["_modules"].items():
        if value is not None and not is_module(value):
            kind = class_name(value) if isinstance(value, Instance) else type(value).__name__
            yield str(name), UnusualTensor(kind=f"a module of class {kind} with its own way of saving")
    names = module.attributes.get("_non_persistent_buffers_set")
    transient = names if isinstance(names, set) else set()
    for part in ("_parameters", "_buffers"):
        for name, value in module.attributes[part].items():
            if value is not None and not (part == "_buffers" and name in transient):
                yield str(name), value


def _modules(module: Instance) -> Iterator[tuple[str, Instance]]:
    scripted = module.class_name.startswith(_SCRIPTED)
    inside = module.attributes if scripted else module.attributes["_modules"]
    for name, value in inside.items():
        if is_module(value) and _PACKED not in value.class_name:
            yield str(name), value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
