"""The list of forms: each a function that saves the model in one way, with what is to become of the file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

Build = Callable[[Path], Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way a model is saved.

    Args:
        build: saves the model somewhere in a folder and gives the path to be read.
        group: the heading it stands under on the page.
        title: what it is, in words.
        container: what the report calls it; "" when it is refused.
        refused: words of the error it is refused with; "" when it is read.
        advice: words of what that error says to do.
        note: what a user should know beside; for the page.
        key: the key to be given.
        prefix: what stands before the usual names of the tensors, here.
        says: patterns that notes of the report have to match.
        dtype: of the weights.
        classes: whether the file says the class of every layer.
        without: layers that are not weights in this file.
    """

    build: Build
    group: str
    title: str
    container: str = ""
    refused: str = ""
    advice: str = ""
    note: str = ""
    key: str | None = None
    prefix: str = ""
    says: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    classes: bool = False
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.container) == bool(self.refused):
            raise ValueError(f"{self.title}: a form is either read or refused")

    def made(self, folder: Path) -> Path:
        """Save the model in this form; what torch thinks of old forms is not heard."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.build(folder)


class Group:
    """A heading of the page, under which forms are put.

    Args:
        name: the heading.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.forms: list[Form] = []

    def read(
        self,
        title: str,
        container: str,
        *,
        note: str = "",
        key: str | None = None,
        prefix: str = "",
        says: Iterable[str] = (),
        dtype: torch.dtype = torch.float32,
        classes: bool = False,
        without: Iterable[str] = (),
    ) -> Callable[[Build], Build]:
        """Put a builder on the list, as a form that is read."""

        def add(build: Build) -> Build:
            self.forms.append(
                Form(
                    build=build,
                    group=self.name,
                    title=title,
                    container=container,
                    note=note,
                    key=key,
                    prefix=prefix,
                    says=tuple(says),
                    dtype=dtype,
                    classes=classes,
                    without=tuple(without),
                )
            )
            return build

        return add

    def refused(self, title: str, found: str, advice: str, *, note: str = "") -> Callable[[Build], Build]:
        """Put a builder on the list, as a form that is refused with these words."""

        def add(build: Build) -> Build:
            self.forms.append(Form(build=build, group=self.name, title=title, refused=found, advice=advice, note=note))
            return build

        return add
