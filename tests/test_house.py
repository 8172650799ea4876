"""What the project says of itself in `pyproject.toml` is what its files do."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mpocompress._version import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
OPTIONAL = [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]


def third_party_imports() -> set[str]:
    names: set[str] = set()
    for file in (ROOT / "mpocompress").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"mpocompress"}


def test_the_package_imports_what_it_declares_and_declares_what_it_imports() -> None:
    undeclared_by_tensorly = {"packaging"}

    assert third_party_imports() | undeclared_by_tensorly == {requirement.name for requirement in RUNTIME}


def test_every_declared_package_is_pinned_inside_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}

    for requirement in RUNTIME + OPTIONAL:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_installed_version_is_that_of_the_files() -> None:
    assert importlib.metadata.version("mpocompress") == __version__


def test_help_is_shown_without_loading_the_heavy_libraries() -> None:
    script = (
        "import sys\n"
        "from mpocompress.cli.main import main\n"
        "sys.argv = ['mpocompress', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "loaded = {'torch', 'tensorly', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {sorted(loaded)}' if loaded else 0)\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: mpocompress")


def test_the_architecture_page_shows_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    layers = [row for floor in floors for row in floor]
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text()

    shown = re.findall(r"^\| \d+ \| (.+) \|$", page, flags=re.MULTILINE)

    assert [row.replace("`", "").split(", ") for row in shown] == [row.split(" | ") for row in layers]
    for name in (name for row in layers for name in row.split(" | ") if name != "_version"):
        assert re.search(rf"^\| `{name}/?` \|", page, flags=re.MULTILINE), f"{name} has no line on the page"
