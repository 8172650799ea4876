"""Compare the site shape chosen from a sample with the best one.

The site shape of a large matrix is chosen from a sample of its rows. This script also computes the full spectra of
every candidate and compares the error of the chosen shape with the smallest one.

    python benchmarks/shapes.py --bond 4 16 64 --seeds 2 --markdown table.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tables import command_line, markdown_table, rich_table
from mpocompress.mpo.sites import balanced, candidates, folded
from mpocompress.mpo.tt_svd import finite_matrix
from mpocompress.planning.curves import best_under_cap, competing_shapes, error_curves
from mpocompress.planning.shortlist import shortlist

LINE_WIDTH = 120
HEADER = ("matrix", "bond", "seed", "shortlist", "chosen", "best", "error of chosen", "error of best", "excess")


def main() -> int:
    """Compare on every matrix, for every bond and seed; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2304)
    parser.add_argument("--cols", type=int, default=2048)
    parser.add_argument("--bond", type=int, nargs="*", default=[4, 16, 64])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        for name, matrix in _matrices(arguments.rows, arguments.cols, seed):
            for row in _compared(name, matrix, arguments.bond, seed):
                rows.append(row)
                print("  ".join(row), file=sys.stderr, flush=True)
    title = command_line("benchmarks/shapes.py")
    Console(width=LINE_WIDTH).print(rich_table(title, HEADER, rows, LINE_WIDTH))
    if arguments.markdown is not None:
        arguments.markdown.write_text("\n".join(markdown_table(title, HEADER, rows)) + "\n")
    return 0


def _matrices(rows: int, cols: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Gaussian noise, power laws, and sums of Kronecker products with noise, for a fold and for a balanced shape."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    yield "normal", normal(rows, cols)
    for power in (0.25, 0.5, 1.0):
        short = min(rows, cols)
        yield f"power law {power}", (normal(rows, short) / torch.arange(1, short + 1) ** power) @ normal(short, cols)
    for sites in (folded(rows, cols, 2, 2), folded(rows, cols, 8, 8), balanced(rows, cols, 2)):
        (row, more_rows), (col, more_cols) = sites.row_dims, sites.col_dims
        first = normal(row * col, 32) / torch.arange(1, 33)
        product = (first @ normal(32, more_rows * more_cols)).reshape(row, col, more_rows, more_cols)
        order = (2, 0, 1, 3) if sites.anti_aligned else (0, 2, 1, 3)
        structure = product.permute(order).reshape(rows, cols)
        for noise in (1.0, 4.0):
            yield f"{sites.label} + noise {noise:g}", structure + noise * normal(rows, cols)


def _compared(name: str, matrix: Tensor, bonds: list[int], seed: int) -> Iterator[tuple[str, ...]]:
    """Rows for one matrix."""
    finite = finite_matrix(matrix)
    for bond in bonds:
        shapes = competing_shapes(candidates(len(matrix), matrix.shape[1], "auto"), bond)
        curves = error_curves(finite, shapes, max_bond=bond)
        listed = shortlist(finite.entries, shapes, bond)
        chosen = best_under_cap([curve for curve in curves if curve.sites in listed], bond)
        if chosen is None:
            continue
        best = min(curves, key=lambda curve: curve.error(curve.sites.capped(bond)))
        errors = [curve.error(curve.sites.capped(bond)) for curve in (chosen, best)]
        yield (
            name,
            str(bond),
            str(seed),
            f"{len(listed)} of {len(shapes)}",
            chosen.sites.label,
            best.sites.label,
            f"{errors[0]:.4f}",
            f"{errors[1]:.4f}",
            f"{errors[0] / errors[1] - 1:.3%}",
        )


if __name__ == "__main__":
    sys.exit(main())
