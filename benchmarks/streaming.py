"""Compress and expand large checkpoints with the command line: processor time and peak memory of the process.

Writes files of float16 matrices of 4096 x 4096 and files of many small layers, runs `python -m mpocompress` on them in
a child process, and samples its anonymous memory.

    python benchmarks/streaming.py --folder /tmp --gib 0.5 1 2 --layers 2500 5000 10000 --markdown table.md
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tables import WIDTH, command_line, markdown_table, rich_table

SIDE = 4096
SAMPLE_S = 0.02
GIB = 2**30
HEADER = ("file", "size", "command", "user + system", "wall", "peak RssAnon", "VmHWM")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Time and memory of one command.

    Args:
        cpu_s: User and system time of the process.
        wall_s: Wall time.
        anonymous_bytes: Largest sample of its anonymous memory.
        resident_bytes: Largest resident set, including pages of mapped files.
    """

    cpu_s: float
    wall_s: float
    anonymous_bytes: int
    resident_bytes: int


def main() -> int:
    """Run every command on every file; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder for the files")
    parser.add_argument("--gib", type=float, nargs="*", default=[0.5, 1.0, 2.0], help="sizes of the large files")
    parser.add_argument("--weights", nargs="*", choices=["power", "gaussian"], default=["power", "gaussian"])
    parser.add_argument("--containers", nargs="*", choices=["safetensors", "pt"], default=["safetensors", "pt"])
    parser.add_argument("--layers", type=int, nargs="*", default=[2500, 5000, 10000], help="numbers of small layers")
    parser.add_argument("--no-expand", action="store_true", help="do not expand")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        for row in (*_large(folder, arguments), *_small(folder, arguments.layers)):
            rows.append(row)
            print("  ".join(row), file=sys.stderr, flush=True)
    title = command_line("benchmarks/streaming.py")
    Console(width=WIDTH).print(rich_table(title, HEADER, rows))
    if arguments.markdown is not None:
        arguments.markdown.write_text("\n".join(markdown_table(title, HEADER, rows)) + "\n")
    return 0


def _large(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Rows for the files of large matrices: compress and expand, with the same size in both containers."""
    for kind in arguments.weights:
        for gib in arguments.gib:
            count = round(gib * GIB / (2 * SIDE * SIDE))
            tensors = {f"layers.{index}.weight": _matrix(kind, index) for index in range(count)}
            for container in arguments.containers:
                source, small = folder / f"model.{container}", folder / f"small.{container}"
                _save(tensors, source)
                yield _row(f"{count} x {kind}", source, "--bond 16", [str(source), "--bond", "16", "-o", str(small)])
                if not arguments.no_expand:
                    dense = folder / f"dense.{container}"
                    yield _row(f"{count} x {kind}", source, "expand", ["expand", str(small), "-o", str(dense)])
                    dense.unlink()
                source.unlink()
                small.unlink()


def _small(folder: Path, counts: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Rows for the files of many small layers."""
    for count in counts:
        generator = torch.Generator().manual_seed(count)
        source, small = folder / "many.safetensors", folder / "small.safetensors"
        shapes = [(64 + 64 * (index % 2), 64) for index in range(count)]
        save_file({f"l.{i}.weight": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}, source)
        for target in (["--bond", "4"], ["--keep", "0.25"]):
            yield _row(f"{count} small", source, " ".join(target), [str(source), *target, "-o", str(small)])
            small.unlink()


def _matrix(kind: str, seed: int) -> Tensor:
    """A float16 matrix: Gaussian, or G diag(1 / i^0.5) H with Gaussian G and H."""
    generator = torch.Generator().manual_seed(seed)
    entries = torch.randn(SIDE, SIDE, generator=generator) / 64
    if kind == "power":
        entries = (entries / torch.arange(1, SIDE + 1).sqrt()) @ (torch.randn(SIDE, SIDE, generator=generator) / 64)
    return entries.half()


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def _row(name: str, source: Path, title: str, arguments: Sequence[str]) -> tuple[str, ...]:
    """Run one command and return the cells of its row."""
    run = _measured(arguments)
    return (
        f"{name}, {source.suffix.removeprefix('.')}",
        f"{source.stat().st_size / GIB:.2f} GiB",
        title,
        f"{run.cpu_s:.1f} s",
        f"{run.wall_s:.1f} s",
        f"{run.anonymous_bytes / 1e6:.0f} MB",
        f"{run.resident_bytes / 1e6:.0f} MB",
    )


def _measured(arguments: Sequence[str]) -> Run:
    """Run the command in a child process and sample its memory."""
    start, anonymous, resident = time.perf_counter(), 0, 0
    child = subprocess.Popen([sys.executable, "-m", "mpocompress", *arguments], stdout=subprocess.DEVNULL)
    while True:
        process_id, status, usage = os.wait4(child.pid, os.WNOHANG)
        if process_id:
            child.returncode = os.waitstatus_to_exitcode(status)
            break
        for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                anonymous = max(anonymous, int(line.split()[1]) * 1024)
            elif line.startswith("VmHWM:"):
                resident = max(resident, int(line.split()[1]) * 1024)
        time.sleep(SAMPLE_S)
    if child.returncode not in (0, 3):
        raise SystemExit(f"mpocompress {' '.join(arguments)} ended with exit code {child.returncode}")
    return Run(
        cpu_s=usage.ru_utime + usage.ru_stime,
        wall_s=time.perf_counter() - start,
        anonymous_bytes=anonymous,
        resident_bytes=resident,
    )


if __name__ == "__main__":
    sys.exit(main())
