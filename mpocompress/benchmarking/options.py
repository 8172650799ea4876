"""Options of `bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpocompress.errors import BenchmarkError
from mpocompress.user.common_options import ProgressOptions
from mpocompress.user.options import check_options, option, option_class

if TYPE_CHECKING:
    import torch
    from torch import nn

InputsFunction = Callable[[int, int], object]
"""Takes a batch size and a length, returns a tensor, a tuple of arguments, or a mapping of named ones."""

DEVICES = ("cpu", "cuda")


@option_class
@dataclass(frozen=True, kw_only=True, eq=False)
class BenchOptions(ProgressOptions):
    """Options of `bench` and of the command of that name.

    Args:
        options: the fields.

    Raises:
        BenchmarkError: a value out of range, inputs without a model, or layers with a model.
    """

    model: str | nn.Module | None = option(
        None,
        metavar="PLACE:NAME",
        help="Model to measure as a whole; `file.py:name` or `package.module:name` is imported and run.",
        details="Or a module.",
        default_text="each layer is measured separately",
    )
    inputs: str | InputsFunction | None = option(
        None,
        flag="--input",
        metavar="PLACE:NAME",
        help="Function of a batch size and a length that returns the inputs of the model.",
        details="It returns a tensor, a tuple of arguments or a mapping of named ones. A callable, or `file.py:name` "
        "or `package.module:name` of one.",
        default_text="derived from the first layer",
    )
    layers: Sequence[str] = option(
        (),
        flag="--layer",
        metavar="GLOB",
        help="Only these layers or tensors, measured separately.",
        default_text="all",
    )
    batches: Sequence[int] = option((1, 32), flag="--batch", syntax="integers", minimum=1, help="Batch sizes.")
    lengths: Sequence[int] = option(
        (100, 1),
        flag="--length",
        syntax="integers",
        minimum=1,
        help="Lengths of the sequences, in steps.",
        details="Layers without sequences ignore them.",
    )
    threads: int = option(
        1, metavar="N", minimum=1, help="Threads of torch.", details="The previous number is restored."
    )
    repeats: int = option(
        15, metavar="N", minimum=1, help="Maximum number of timings of each variant; slow ones get fewer, at least 3."
    )
    device: str | torch.device = option("cpu", choices=DEVICES, help="Device that everything runs on.")

    def __post_init__(self) -> None:
        """Check the values; the device becomes its name."""
        object.__setattr__(self, "device", str(self.device))
        check_options(self, BenchmarkError)
        if self.model is None and self.inputs is not None:
            raise BenchmarkError(
                where="inputs",
                found="inputs without a model",
                why="without a model, layers get random inputs",
                action="Pass the model too, or leave the inputs out.",
            )
        if self.model is not None and self.layers:
            raise BenchmarkError(
                where="layers",
                found="layers together with a model",
                why="a model is measured as a whole",
                action="Pass one of them.",
            )

    @property
    def device_name(self) -> str:
        """Name of the device, `cpu` or `cuda`."""
        return str(self.device)
