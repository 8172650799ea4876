"""What the project says of itself in `pyproject.toml` is what its files do."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mpocompress
from mpocompress._version import __version__
from tests.programs import run_python
from tools import architecture_page, release_check
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

    outcome = run_python(["-c", script])

    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Usage: mpocompress")


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


def parsed(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_the_workflow_tests_every_stated_python_version_with_the_oldest_and_the_newest_torch() -> None:
    jobs = parsed(".github/workflows/ci.yml")["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    commands = {name: " ".join(step.get("run", "") for step in job["steps"]) for name, job in jobs.items()}
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    (torch,) = (requirement for requirement in RUNTIME if requirement.name == "torch")

    stated = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in PROJECT["classifiers"]]
    assert matrix["python"] == [match[1] for match in stated if match]
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"
    assert str(torch.specifier) == f">={matrix['torch'][0].removesuffix('.0')}"
    assert "make test" in commands["test"]
    assert "make release-check" in commands["release-check"]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in used)
    assert all(job["timeout-minutes"] for job in jobs.values())


@pytest.mark.parametrize("form", sorted(path.name for path in (ROOT / ".github/ISSUE_TEMPLATE").iterdir()))
def test_an_issue_form_has_the_required_parts(form: str) -> None:
    template = parsed(f".github/ISSUE_TEMPLATE/{form}")

    assert template["name"]
    assert template["description"]
    assert [field["attributes"] for field in template["body"]]


def test_the_hooks_run_the_tools_of_the_environment() -> None:
    (repository,) = parsed(".pre-commit-config.yaml")["repos"]
    hooks = {hook["id"]: hook for hook in repository["hooks"]}

    assert repository["repo"] == "local"
    assert list(hooks) == ["ruff", "ruff-format", "mypy"]
    assert all(hook["entry"].startswith(".venv/bin/") for hook in hooks.values())
    assert hooks["mypy"]["stages"] == ["manual"]


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = parsed("CITATION.cff")
    (paper,) = citation["references"]

    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    assert "2012.11943" in paper["url"]
    assert [author["family-names"] for author in paper["authors"]] == ["Gao", "Sun", "Gao", "Li", "Lu"]


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_the_links_of_a_top_level_page_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / page).read_text())

    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_release_check_names_the_files_that_a_wheel_lacks(tmp_path: Path) -> None:
    package = tmp_path / "shell"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__.py", "py.typed", "inner/schema.json"):
        (package / name).touch()
    with zipfile.ZipFile(tmp_path / "shell.whl", "w") as archive:
        archive.writestr("shell/__init__.py", "")

    assert release_check.missing_files(tmp_path / "shell.whl", package) == ["shell/inner/schema.json", "shell/py.typed"]


def test_the_release_check_stops_a_command_at_its_time_limit(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import threading; threading.Event().wait()"]

    with pytest.raises(release_check.CheckError, match=r"did not finish within 0 s"):
        release_check.run(command, folder=tmp_path, timeout_s=0.01)


def test_the_release_check_shows_what_a_failed_command_printed(tmp_path: Path) -> None:
    with pytest.raises(release_check.CheckError, match=r"ended with exit code 1:\nno such plan\n"):
        release_check.run([sys.executable, "-c", "raise SystemExit('no such plan')"], folder=tmp_path, timeout_s=60)


STARTED = {"run", "call", "check_call", "check_output"}
"""Functions of `subprocess` that start a program and wait for its end."""

AWAITED = {"wait": 1, "communicate": 2, "join": 1}
"""Methods that wait for a process or a thread: how many positional arguments include the time limit."""

UNLIMITED = {"fork", "waitpid", "system", "Popen", "multiprocessing", "spawn"}
"""Names of what starts or awaits a process without a time limit."""

STARTERS = {"tests/programs.py", "tests/fork_server.py"}
"""Files that start processes in other ways, and limit their time themselves."""


def calls_without_a_time_limit(source: str) -> list[str]:
    """Return the calls in a file that start a process, or wait for one, and may wait for ever."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    unlimited = []
    for call in calls:
        names = ast.unparse(call.func).split(".")
        limited = any(keyword.arg == "timeout" for keyword in call.keywords)
        if (
            (names[0] == "subprocess" and names[-1] in STARTED and not limited)
            or (len(names) > 1 and len(call.args) < AWAITED.get(names[-1], 0) and not limited)
            or not UNLIMITED.isdisjoint(names)
        ):
            unlimited.append(ast.unparse(call))
    return unlimited


@pytest.mark.parametrize(
    "line",
    [
        "subprocess.run(words, check=True)",
        "subprocess.check_output(words)",
        "subprocess.Popen(words)",
        "process.wait()",
        "process.communicate(data)",
        "thread.join()",
        "os.fork()",
        "multiprocessing.get_context('spawn')",
    ],
)
def test_a_call_without_a_time_limit_is_seen(line: str) -> None:
    assert calls_without_a_time_limit(line) == [line]


def test_a_call_with_a_time_limit_passes() -> None:
    lines = ["subprocess.run(words, timeout=9)", "process.wait(9)", "thread.join(timeout=9)", "', '.join(words)"]
    assert calls_without_a_time_limit("\n".join(lines)) == []


def test_every_child_process_and_thread_of_the_tests_has_a_time_limit() -> None:
    files = [file for folder in ("tests", "tools") for file in (ROOT / folder).rglob("*.py")]
    unlimited = {file.relative_to(ROOT).as_posix(): calls_without_a_time_limit(file.read_text()) for file in files}

    assert {file: calls for file, calls in unlimited.items() if calls and file not in STARTERS} == {}


def test_every_package_has_tests_that_are_not_slow() -> None:
    packages = [entry.parent.name for entry in (ROOT / "mpocompress").glob("*/__init__.py")]
    fast = {
        file.parent.name
        for file in (ROOT / "tests").glob("*/test_*.py")
        if not re.search(r"(?m)^pytestmark = .*slow", file.read_text())
    }

    assert set(packages) <= fast
