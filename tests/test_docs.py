"""The documentation holds: its generated pages are current, and what runs its examples is strict."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from mpocompress.cli.main import cli
from tests.forms.every import GROUPS
from tests.forms.registry import Group
from tools import cli_reference, console_blocks, forms_page
from tools.pages import is_current


@click.group(help="Tools for a farm.")
def farm() -> None: ...


@farm.command(help="Count the sheep.")
@click.option("--awake", is_flag=True, help="Only those awake.")
def count(awake: bool) -> None: ...


@farm.command(hidden=True)
def shear() -> None: ...


def test_the_command_reference_is_what_the_commands_say() -> None:
    assert is_current(cli_reference.PAGE, cli_reference.render(cli)), (
        "docs/reference/cli.md is out of date: run `make reference`"
    )


def test_the_page_of_forms_is_what_the_tests_build() -> None:
    assert is_current(forms_page.PAGE, forms_page.render(GROUPS)), (
        "docs/reference/forms.md is out of date: run `make reference`"
    )


def test_the_page_of_forms_says_what_becomes_of_each() -> None:
    group = Group("Shells")
    group.read("a snail", "spiral", key="house", note="slowly")(Path.absolute)
    group.refused("an egg", "a bird", "Wait")(Path.absolute)

    page = forms_page.render([group])

    assert "| a snail | read | `spiral` | with the key `house`; slowly |" in page
    assert "| an egg | refused: “a bird” |  |  |" in page


def test_the_command_reference_names_every_visible_command_and_option() -> None:
    page = cli_reference.render(farm)

    assert "## `mpocompress`" in page
    assert "## `mpocompress count`" in page
    assert "--awake" in page
    assert "shear" not in page
    assert max(map(len, page.split("```text", 1)[1].splitlines())) <= cli_reference.WIDTH


def test_checking_the_command_reference_fails_until_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "cli.md"

    assert cli_reference.main(farm, page, ["--check"]) == 1
    assert "run `make reference`" in capsys.readouterr().err
    assert not page.exists()
    assert cli_reference.main(farm, page, []) == 0
    assert cli_reference.main(farm, page, ["--check"]) == 0
    page.write_text(page.read_text() + "\n")
    assert cli_reference.main(farm, page, ["--check"]) == 1


def echo() -> int:
    """Print the arguments as a program would, complain when there are none, and exit with their number less one."""
    words = sys.argv[1:]
    print(*words)
    if not words:
        print("nothing to say", file=sys.stderr)
    return max(len(words) - 1, 0)


def problems(block: str) -> list[str]:
    found = (console_blocks.check(command, echo) for command in console_blocks.parse(block))
    return [problem for problem in found if problem is not None]


@pytest.mark.parametrize(
    "block",
    [
        "$ mpocompress word",
        "$ mpocompress word\nword",
        "$ mpocompress word  # a remark\nword",
        "$ mpocompress two words  # exit 1\ntwo words",
        "$ mpocompress 'two words'\ntwo words\n\n$ mpocompress next\nnext",
        "$ mpocompress \\\n    word\nword",
        "$ mpocompress 'a long story'\na ... story",
        "$ mpocompress\n\nnothing to say",
    ],
)
def test_a_block_that_shows_what_its_commands_print_holds(block: str) -> None:
    assert problems(block) == []


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("$ mpocompress word\nother", "`mpocompress word` printed something else than the page shows"),
        ("$ mpocompress two words", "ended with exit code 1, not 0, and printed:\ntwo words"),
        ("$ mpocompress word  # exit 2", "ended with exit code 0, not 2"),
        ("$ mpocompress first\n$ mpocompress second\nthird", "-third\n+second"),
    ],
)
def test_a_block_that_shows_something_else_does_not(block: str, problem: str) -> None:
    (found,) = problems(block)

    assert problem in found


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("$ ls", r"`ls`: a console block runs only `mpocompress`"),
        ("word\n$ mpocompress", r"`word`: a console block starts with a line `\$ mpocompress \.\.\.`"),
    ],
)
def test_a_block_that_cannot_be_run_is_refused(block: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(console_blocks.parse(block))


def test_a_command_can_write_its_output_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert problems("$ mpocompress word > said.txt") == []
    assert (tmp_path / "said.txt").read_text() == "word\n"


def test_a_document_works_in_its_own_folder_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "bundled.pt"
    checkpoint.write_bytes(b"weights")
    for name in console_blocks.BESIDE_CHECKPOINT:
        (tmp_path / name).write_text(f"content of {name}")
    monkeypatch.setattr(console_blocks, "CHECKPOINT", checkpoint)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}

    console_blocks.enter_workspace(namespace)
    inside = Path.cwd()
    assert inside != tmp_path
    assert Path("model.pt").read_bytes() == b"weights"
    for name in console_blocks.BESIDE_CHECKPOINT:
        assert Path(name).read_text() == f"content of {name}"
    console_blocks.leave_workspace(namespace)

    assert Path.cwd() == tmp_path
    assert not inside.exists()
    assert namespace == {}
