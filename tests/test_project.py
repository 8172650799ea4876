"""What the project says of itself in `pyproject.toml` is what its files do."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mpocompress
from mpocompress._version import __version__
from tools import architecture_page
from tools.pages import is_current

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


def test_the_architecture_page_shows_the_import_contract() -> None:
    assert is_current(architecture_page.PICTURE, architecture_page.picture()), "run `make reference`"
    assert is_current(architecture_page.PAGE, architecture_page.page()), "run `make reference`"


def test_every_package_describes_itself_in_one_paragraph() -> None:
    for package in (ROOT / "mpocompress").rglob("__init__.py"):
        docstring = ast.get_docstring(ast.parse(package.read_text()))
        assert docstring, package


def test_the_top_level_stays_small() -> None:
    entries = [entry for entry in (ROOT / "mpocompress").iterdir() if entry.name != "__pycache__"]

    assert len([entry for entry in entries if entry.is_dir()]) <= 13
    assert len([entry for entry in entries if entry.suffix == ".py"]) <= 6
    assert len(architecture_page.rows()) <= 11


def test_the_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse((ROOT / "mpocompress" / "__init__.py").read_text())
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]

    seen = {alias.asname: f"{node.module}.{alias.name}" for node in imports for alias in node.names}

    homes = {name: f"mpocompress.{module}.{name}" for name, module in mpocompress._MODULES.items()}
    assert seen == homes
    assert set(mpocompress.__all__) == {*homes, "__version__"}


def test_every_public_name_can_be_imported_and_is_listed() -> None:
    assert [name for name in mpocompress.__all__ if not hasattr(mpocompress, name)] == []
    assert set(mpocompress.__all__) <= set(dir(mpocompress))
    with pytest.raises(AttributeError, match="module 'mpocompress' has no attribute 'look'"):
        mpocompress.look  # noqa: B018


def test_the_python_page_shows_every_public_name_once() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text()

    shown = re.findall(r"(?m)^\.\. auto(?:function|class):: (\w+)$", page)

    assert sorted(shown) == sorted(set(mpocompress.__all__) - {"MPOCompressError", "__version__"})
    assert ".. automodule:: mpocompress.errors" in page


RESERVED = {"export", "compare", "rerun"}
"""Public functions of later releases; a package of that name would hide them."""


def test_no_module_hides_a_public_name() -> None:
    modules = {entry.stem for entry in (ROOT / "mpocompress").iterdir() if not entry.name.startswith("_")}

    assert modules & (set(mpocompress.__all__) | RESERVED) == set()
