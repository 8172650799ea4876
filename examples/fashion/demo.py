"""Compress the bundled checkpoint and compare size, accuracy and speed before and after.

The script runs `mpocompress` and `mpocompress expand` as commands. It loads the expanded file with plain torch into the
network of `net.py`, and the compressed file with `mpocompress.load` into the same network.
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
from net import accuracy, build, prepare
from safetensors.torch import load_file
from torch import Tensor, nn

import mpocompress

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "fashion.pt"
HELDOUT = HERE / "heldout.safetensors"
KEEP = 0.25  # README.md in this folder has a table of other fractions
BATCHES = (1, 32)
REPEATS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: a file and the accuracy of its weights."""

    name: str
    parameters: int
    size_bytes: int
    accuracy: float


def run(arguments: list[str]) -> None:
    """Print a `mpocompress` command and run it in the environment of this script.

    Raises:
        subprocess.CalledProcessError: If the command fails.
    """
    print(f"\n$ {shlex.join(['mpocompress', *arguments])}", flush=True)
    program = Path(sys.executable).with_name("mpocompress")
    command = [str(program)] if program.is_file() else [sys.executable, "-m", "mpocompress"]
    subprocess.run([*command, *arguments], check=True)


def shown(path: Path) -> str:
    """Return the path relative to the current folder if it is inside it, otherwise unchanged."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def read_state_dict(path: Path, key: str) -> Mapping[str, Tensor]:
    """Return the state dict that a `.pt` file holds under a key, loaded without running code from the file."""
    state_dict: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)[key]
    return state_dict


def network(state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Return the network with these weights, in evaluation mode."""
    model = build()
    model.load_state_dict(state_dict)
    return model.eval()


def milliseconds(models: Sequence[nn.Module], images: Tensor) -> list[float]:
    """Return the median time of a call of each model in ms; the calls of the models alternate."""
    rows = prepare(images)
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for turn in range(3 + REPEATS):
            for model, times_ms in zip(models, times, strict=True):
                started = time.perf_counter()
                model(rows)
                if turn >= 3:  # the first calls warm up
                    times_ms.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(times_ms) for times_ms in times]


def show_speed(dense: nn.Module, compressed: nn.Module, images: Tensor) -> None:
    """Print the time that both networks take for a batch on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(f"\n{'time per batch, one thread':<30}{'dense':>12}{'compressed':>14}")
    for batch in BATCHES:
        before, after = milliseconds((dense, compressed), images[:batch])
        name = "1 image" if batch == 1 else f"{batch} images"
        print(f"{name:<30}{before:>9.2f} ms{after:>11.2f} ms{before / after:>7.1f} x")
    torch.set_num_threads(threads)


def count(state_dict: Mapping[str, Tensor]) -> int:
    """Return the number of entries of all tensors."""
    return sum(tensor.numel() for tensor in state_dict.values())


def show(before: Row, after: Row) -> None:
    """Print both rows and the change between them."""
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
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder for the output files")
    return parser.parse_args()


def main() -> int:
    """Compress, expand, measure, and return the exit code."""
    started = time.perf_counter()
    options = parse_arguments()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    small, dense = out / "fashion-small.pt", out / "fashion-dense.pt"

    print("Compress a Fashion-MNIST classifier, an LSTM that reads each image row by row.\nNo data is used.")
    try:
        run([shown(CHECKPOINT), "--keep", f"{options.keep:g}", "-o", shown(small), "--force"])
        run(["expand", shown(small), "-o", shown(dense), "--force"])
    except subprocess.CalledProcessError as error:
        print(f"\nThe command above ended with exit code {error.returncode}.", file=sys.stderr)
        return int(error.returncode)

    heldout = load_file(HELDOUT)
    original = read_state_dict(CHECKPOINT, "model_state_dict")
    images, labels = heldout["images"], heldout["labels"]
    original_network, expanded_network = network(original), network(read_state_dict(dense, "model_state_dict"))
    compressed_network = mpocompress.load(small, build(), execution="factorised").eval()
    before = Row(
        name=CHECKPOINT.name,
        parameters=count(original),
        size_bytes=CHECKPOINT.stat().st_size,
        accuracy=accuracy(original_network, images, labels),
    )
    after = Row(
        name=small.name,
        parameters=count(read_state_dict(small, "state_dict")),
        size_bytes=small.stat().st_size,
        accuracy=accuracy(expanded_network, images, labels),
    )
    show(before, after)
    show_speed(expanded_network, compressed_network, images)
    cores_accuracy = accuracy(compressed_network, images, labels)
    wall_s = time.perf_counter() - started
    print(
        f"\nAccuracy is measured on {len(images):,} test images, for {small.name} after expansion.\n"
        f"Run directly from its cores, {small.name} has {100 * cores_accuracy:.2f} %.\n"
        f"The demo took {wall_s:.0f} s."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
