"""Compress the bundled checkpoint with the `mpocompress` command: what it costs in accuracy and saves in time.

Two commands are run as a user would type them; their output is theirs. The expanded file is an ordinary dense
checkpoint: it is loaded with plain torch into the network of `model.py`, which knows nothing of mpocompress. The
compressed file is loaded into the same network, and runs from its cores.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from model import accuracy, build, prepare
from safetensors.torch import load_file
from torch import Tensor, nn

import mpocompress

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "fashion.pt"
HELDOUT = HERE / "heldout.safetensors"
KEEP = 0.25  # the README's table says what other budgets give
BATCHES = (1, 32)
REPEATS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: a file, and what the network answers with its weights."""

    name: str
    parameters: int
    size_bytes: int
    accuracy: float


def run(arguments: list[str]) -> None:
    """Show a `mpocompress` command and run it with the interpreter that runs this script.

    Args:
        arguments: What follows `mpocompress` on the command line.

    Raises:
        subprocess.CalledProcessError: If the command fails; it has said why.
    """
    print(f"\n$ {shlex.join(['mpocompress', *arguments])}", flush=True)
    beside = Path(sys.executable).with_name("mpocompress")
    command = [str(beside)] if beside.is_file() else [sys.executable, "-m", "mpocompress"]
    subprocess.run([*command, *arguments], check=True)


def shown(path: Path) -> str:
    """Return the path as seen from the current folder if it lies below it, and as it is otherwise."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def read_state_dict(path: Path, key: str) -> Mapping[str, Tensor]:
    """Return the tensors of a `.pt` file without running anything that is in it.

    Args:
        path: A file of `torch.save`.
        key: Where in the saved dictionary the tensors are.
    """
    state_dict: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)[key]
    return state_dict


def network(state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Return the network with these weights.

    Args:
        state_dict: Dense weights under the network's own names.
    """
    model = build()
    model.load_state_dict(state_dict)
    return model.eval()


def milliseconds(models: Sequence[nn.Module], images: Tensor) -> list[float]:
    """Return the median time of one call of each model, taking turns, on one thread.

    Args:
        models: Networks that read what `prepare` returns.
        images: What they are given, shape (batch, 28, 28), uint8.
    """
    rows = prepare(images)
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for turn in range(3 + REPEATS):
            for model, taken in zip(models, times, strict=True):
                started = time.perf_counter()
                model(rows)
                if turn >= 3:  # the first ones warm up
                    taken.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(taken) for taken in times]


def show_speed(dense: nn.Module, compressed: nn.Module, images: Tensor) -> None:
    """Print how long both networks take for a batch, one thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(f"\n{'time of a batch, one thread':<30}{'dense':>12}{'factorised':>14}")
    for batch in BATCHES:
        before, after = milliseconds((dense, compressed), images[:batch])
        name = "1 image" if batch == 1 else f"{batch} images"
        print(f"{name:<30}{before:>9.2f} ms{after:>11.2f} ms{before / after:>7.1f} x")
    torch.set_num_threads(threads)


def count(state_dict: Mapping[str, Tensor]) -> int:
    """Return how many numbers the tensors hold."""
    return sum(tensor.numel() for tensor in state_dict.values())


def show(before: Row, after: Row) -> None:
    """Print the two rows and what changed between them."""
    print(f"\n{'':<24}{'parameters':>12}{'file bytes':>13}{'accuracy':>11}")
    for row in (before, after):
        print(f"{row.name:<24}{row.parameters:>12,}{row.size_bytes:>13,}{100 * row.accuracy:>9.2f} %")
    lost = 100 * (before.accuracy - after.accuracy)
    change = f"{abs(lost):.2f} points {'less' if lost > 0 else 'more'}" if lost else "unchanged"
    print(
        f"{'':<24}{before.parameters / after.parameters:>10.1f} x"
        f"{before.size_bytes / after.size_bytes:>11.1f} x  {change}"
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=KEEP, help=f"fraction of the parameters to keep (default {KEEP})")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder for the files it writes")
    return parser.parse_args()


def main() -> int:
    """Compress, expand, measure, and return the exit status."""
    started = time.perf_counter()
    options = parse_arguments()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    small, dense = out / "fashion-small.pt", out / "fashion-dense.pt"

    print("A Fashion-MNIST classifier (an LSTM that reads each image row by row), compressed without any data.")
    try:
        run([shown(CHECKPOINT), "--keep", f"{options.keep:g}", "-o", shown(small), "--force"])
        run(["expand", shown(small), "-o", shown(dense), "--force"])
    except subprocess.CalledProcessError as error:
        print(f"\nthe command above ended with exit status {error.returncode}", file=sys.stderr)
        return int(error.returncode)

    heldout = load_file(HELDOUT)
    original = read_state_dict(CHECKPOINT, "model_state_dict")
    images, labels = heldout["images"], heldout["labels"]
    before_it, after_it = network(original), network(read_state_dict(dense, "model_state_dict"))
    compressed = mpocompress.load(small, build(), execution="factorised").eval()
    before = Row(
        name=CHECKPOINT.name,
        parameters=count(original),
        size_bytes=CHECKPOINT.stat().st_size,
        accuracy=accuracy(before_it, images, labels),
    )
    after = Row(
        name=small.name,
        parameters=count(read_state_dict(small, "state_dict")),
        size_bytes=small.stat().st_size,
        accuracy=accuracy(after_it, images, labels),
    )
    show(before, after)
    loaded = accuracy(compressed, images, labels)
    show_speed(after_it, compressed, images)
    wall_s = time.perf_counter() - started
    print(
        f"\nAccuracy on {len(images):,} images that were never trained on; the compressed file, loaded and run from\n"
        f"its cores, has {100 * loaded:.2f} %. The whole demo took {wall_s:.0f} s."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
