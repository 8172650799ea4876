"""Build the sdist and the wheel, install the wheel in a clean environment, and compress a checkpoint there.

    python -m tools.release_check

The wheel is built from the unpacked sdist, so a file that the sdist lacks is noticed. The commands run outside the
repository, in isolated mode, on a copy of the bundled checkpoint. The exit code is 1 if any step fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mpocompress"
CHECKPOINT = ROOT / "examples" / "fashion" / "fashion.pt"
BUILD_S = 300
INSTALL_S = 1800
COMMAND_S = 300
IMPORT_SCRIPT = """
import importlib.metadata, json, mpocompress
for name in mpocompress.__all__:
    getattr(mpocompress, name)
print(json.dumps([mpocompress.__file__, importlib.metadata.version("mpocompress")]))
"""
COMPARE_SCRIPT = """
import sys, torch
before, after = (torch.load(file, weights_only=True)["model_state_dict"] for file in sys.argv[1:])
assert {name: t.shape for name, t in before.items()} == {name: t.shape for name, t in after.items()}
"""


class CheckError(Exception):
    """A step of the check failed; the message says which."""


def run(command: Sequence[str | Path], *, folder: Path, timeout_s: float) -> str:
    """Return the standard output of a command.

    Args:
        command: The program and its arguments.
        folder: Working directory.
        timeout_s: Time limit in seconds.

    Raises:
        CheckError: If the command fails or exceeds the limit.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    shown = " ".join(map(str, command))
    try:
        process = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CheckError(f"`{shown}` did not finish within {timeout_s:.0f} s") from error
    if process.returncode != 0:
        raise CheckError(f"`{shown}` ended with exit code {process.returncode}:\n{process.stdout}{process.stderr}")
    return process.stdout


def new_environment(folder: Path, requirements: Iterable[str | Path], *, constraints: Path | None) -> Path:
    """Create a virtual environment and return its folder of programs.

    Args:
        folder: Where the environment is created.
        requirements: What pip installs into it.
        constraints: File of version pins, or None for the newest versions.

    Raises:
        CheckError: If the installation fails.
    """
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder=ROOT, timeout_s=BUILD_S)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pins = () if constraints is None else ("--constraint", constraints)
    options = ("--python", programs / "python", "--disable-pip-version-check", "--no-input")
    command = (sys.executable, "-m", "pip", *options, "install", "--quiet", *pins, *requirements)
    run(command, folder=folder, timeout_s=INSTALL_S)
    return programs


def build(folder: Path) -> tuple[Path, Path]:
    """Build the sdist from the repository and the wheel from the sdist; return both files."""
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    python = new_environment(folder / "builder", requires, constraints=None) / "python"
    output = folder / "dist"
    run([python, "-m", "hatchling", "build", "-t", "sdist", "-d", output], folder=ROOT, timeout_s=BUILD_S)
    (sdist,) = output.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    run([python, "-m", "hatchling", "build", "-t", "wheel", "-d", output], folder=source, timeout_s=BUILD_S)
    (wheel,) = output.glob("*.whl")
    return sdist, wheel


def missing_files(wheel: Path, package: Path) -> list[str]:
    """Return the files of a package folder that a wheel lacks, as paths inside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    files = (file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return sorted(name for file in files if (name := file.relative_to(package.parent).as_posix()) not in packed)


def check_wheel(wheel: Path) -> str:
    """Compare the wheel with the package folder; return what was checked.

    Raises:
        CheckError: If a file is missing, or if the wheel installs another top-level package.
    """
    if missing := missing_files(wheel, ROOT / PACKAGE):
        raise CheckError(f"{wheel.name} lacks {', '.join(missing)}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    if f"{PACKAGE}/py.typed" not in names:
        raise CheckError(f"{wheel.name} lacks {PACKAGE}/py.typed")
    tops = {name.partition("/")[0] for name in names}
    if others := [top for top in tops if top != PACKAGE and not top.endswith(".dist-info")]:
        raise CheckError(f"{wheel.name} also installs {', '.join(sorted(others))}")
    schemas = sum(name.startswith(f"{PACKAGE}/") and name.endswith(".json") for name in names)
    return f"{len(names)} files, among them py.typed and {schemas} JSON Schemas"


def check_installed(wheel: Path, folder: Path) -> Iterable[str]:
    """Install the wheel in a clean environment and use it; yield what was checked.

    Raises:
        CheckError: If the package is imported from elsewhere, or if a command fails.
    """
    programs = new_environment(folder / "environment", [wheel], constraints=ROOT / "constraints.txt")
    python, program, work = programs / "python", programs / PACKAGE, folder / "work"
    work.mkdir()
    file, version = json.loads(run([python, "-I", "-c", IMPORT_SCRIPT], folder=work, timeout_s=COMMAND_S))
    if not Path(file).is_relative_to(folder / "environment"):
        raise CheckError(f"{PACKAGE} was imported from {file}, not from the clean environment")
    if f"-{version}-" not in wheel.name:
        raise CheckError(f"version {version} is installed from {wheel.name}")
    yield f"version {version}: every public name can be imported"

    shutil.copyfile(CHECKPOINT, work / "model.pt")
    run([program, "model.pt", "--keep", "0.25", "-o", "small.pt"], folder=work, timeout_s=COMMAND_S)
    before, after = ((work / name).stat().st_size for name in ("model.pt", "small.pt"))
    if after > before / 2:
        raise CheckError(f"small.pt has {after:,} bytes, model.pt {before:,}")
    json.loads(run([program, "inspect", "small.pt", "--json"], folder=work, timeout_s=COMMAND_S))
    yield f"compress and inspect: {before:,} bytes before, {after:,} bytes after"
    run([program, "expand", "small.pt", "-o", "dense.pt"], folder=work, timeout_s=COMMAND_S)
    run([python, "-I", "-c", COMPARE_SCRIPT, "model.pt", "dense.pt"], folder=work, timeout_s=COMMAND_S)
    yield "expand: the dense checkpoint has the names and shapes of the original"


def main() -> int:
    """Run all checks, print each result, and return the exit code."""
    try:
        with tempfile.TemporaryDirectory(prefix="mpocompress-release-") as temporary:
            folder = Path(temporary).resolve()
            sdist, wheel = build(folder)
            print(f"built {sdist.name} ({sdist.stat().st_size:,} bytes) and, from it, {wheel.name}", flush=True)
            print(f"wheel: {check_wheel(wheel)}", flush=True)
            for line in check_installed(wheel, folder):
                print(f"installed: {line}", flush=True)
    except CheckError as error:
        print(f"release check failed: {error}", file=sys.stderr)
        return 1
    print("release check passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
