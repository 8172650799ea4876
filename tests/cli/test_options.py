"""Every option is declared once, and the command line shows what is declared."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

import click
import pytest

from mpocompress.benchmarking.options import BenchOptions
from mpocompress.calibration.options import CalibrateOptions, CalibrationInputs
from mpocompress.cli.main import cli
from mpocompress.cli.options import build, declared_options, last_wins
from mpocompress.compression.options import CompressOptions, ExpandOptions, InspectOptions, PlanOptions
from mpocompress.finetuning.options import FinetuneModuleOptions, FinetuneOptions
from mpocompress.layers.selection import Selection
from mpocompress.modules.options import CompressModuleOptions
from mpocompress.planning.targets import TARGETS, Truncation
from mpocompress.user.options import Option, default_of, flag_of, option_of

OPTIONS: dict[str, type] = {
    "compress": CompressOptions,
    "plan": PlanOptions,
    "inspect": InspectOptions,
    "finetune": FinetuneOptions,
    "expand": ExpandOptions,
    "bench": BenchOptions,
}
"""Command -> the class that declares its options."""

OTHERS: tuple[type, ...] = (
    Selection,
    CalibrationInputs,
    CalibrateOptions,
    CompressModuleOptions,
    FinetuneModuleOptions,
)

COMMAND_LINE_ONLY = {"--output", "--json", "--dry-run", "--self-generate", "--no-teacher"}
"""Flags of what only a command line has: where the result goes, and other ways to write a value."""

LEFT_OUT = {
    "plan": {"dtype"},
    "inspect": {"sites", "selection__lstm"},
}
"""Command -> declared options that it does not have: reports without weights do not depend on them."""


def click_options(command: str) -> dict[str, click.Option]:
    return {param.name or "": param for param in cli.commands[command].params if isinstance(param, click.Option)}


def declarations() -> Iterator[tuple[str, Field[Any]]]:
    for options_class in (*OPTIONS.values(), *OTHERS):
        for declared in fields(options_class):
            yield options_class.__name__, declared


@pytest.mark.parametrize("command", OPTIONS)
def test_every_click_option_is_declared_by_an_option_class(command: str) -> None:
    declared = dict(declared_options(OPTIONS[command]))
    targets = {target.name: target.flag for target in TARGETS.values()} if command == "compress" else {}

    shown = click_options(command)

    expected = {name: flag_of(each) for name, each in declared.items() if name not in LEFT_OUT.get(command, set())}
    others = {name: param for name, param in shown.items() if name not in expected}
    assert {name: param.opts[-1] for name, param in shown.items() if name in expected} == expected
    assert {name: param.opts[-1] for name, param in others.items() if name in targets} == targets
    assert {param.opts[-1] for name, param in others.items() if name not in targets} <= COMMAND_LINE_ONLY


@pytest.mark.parametrize("command", OPTIONS)
def test_help_and_default_are_those_of_the_declaration(command: str) -> None:
    shown = click_options(command)

    for name, declared in declared_options(OPTIONS[command]):
        if name in LEFT_OUT.get(command, set()):
            continue
        description, default = option_of(declared), default_of(declared)
        text = shown[name].help or ""
        assert text.startswith(description.help.replace("`", ""))
        assert not description.default_text or text.endswith(f"[default: {description.default_text}]")
        if default is not MISSING and default is not None and not isinstance(default, bool) and default not in ((), {}):
            assert shown[name].show_default is True


@pytest.mark.parametrize("command", OPTIONS)
def test_a_command_line_without_options_means_the_defaults(command: str) -> None:
    words = ["in.pt", *(["-o", "out.pt"] if command == "expand" else [])]
    parent = click.Context(cli, info_name="mpocompress", **cli.context_settings)
    values = cli.commands[command].make_context(command, words, parent=parent).params
    with_default = [each for each in fields(OPTIONS[command]) if default_of(each) is not MISSING]
    required = {each.name: 1 for each in fields(OPTIONS[command]) if each not in with_default}

    options: Any = build(OPTIONS[command], values, **required)

    assert {each.name: getattr(options, each.name) for each in with_default} == {
        each.name: default_of(each) for each in with_default
    }


def test_no_option_is_declared_twice() -> None:
    by_text: dict[str, list[Option]] = {}
    for _, declared in declarations():
        by_text.setdefault(option_of(declared).help, []).append(option_of(declared))

    for text, found in by_text.items():
        assert len({id(each) for each in found}) == 1, f"declared twice: {text}"


def test_every_public_field_is_described() -> None:
    for name, declared in declarations():
        text = option_of(declared).help
        assert text.endswith("."), (name, declared.name)
        assert "--" not in text + option_of(declared).details, (name, declared.name)


def test_option_classes_are_imported_without_the_heavy_libraries() -> None:
    modules = sorted({each.__module__ for each in (*OPTIONS.values(), *OTHERS, Truncation)})
    script = (
        f"import sys, {', '.join(modules)}\n"
        "loaded = {'torch', 'tensorly', 'scipy', 'numpy', 'click', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {sorted(loaded)}' if loaded else 0)\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_pattern_given_twice_counts_where_it_was_given_last() -> None:
    assert list(last_wins([("a", 1), ("b", 2), ("a", 3)]).items()) == [("b", 2), ("a", 3)]
