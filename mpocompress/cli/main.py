"""The `mpocompress` command: its subcommands, and the only place that catches errors."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path

import click

from mpocompress._version import __version__
from mpocompress.cli.bench import bench
from mpocompress.cli.compress import compress
from mpocompress.cli.expand import expand
from mpocompress.cli.finetune import finetune
from mpocompress.cli.inspect import inspect
from mpocompress.cli.plan import plan
from mpocompress.cli.terminal import INTERRUPTED
from mpocompress.errors import (
    CalibrationError,
    InputsError,
    ModelError,
    MPOCompressError,
    OutputExistsError,
    SelectionError,
)

HINTS: dict[type[MPOCompressError], str] = {
    OutputExistsError: "--force replaces it.",
    CalibrationError: "Give calibration inputs with --calibrate net.py:batches.",
    InputsError: "Give a function that returns inputs with --input net.py:batch.",
    ModelError: "Give the model with --model.",
    SelectionError: "Patterns are the values of --include, --exclude, --as, --bond GLOB=N and --layer.",
}


class DefaultGroup(click.Group):
    """A group with a default command: `mpocompress model.pt ...` is `mpocompress compress model.pt ...`."""

    default = "compress"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the default command unless the first argument is a command or a flag of the group."""
        own = {flag for param in self.get_params(ctx) for flag in param.opts}
        if args and not args[0].startswith("-") and args[0] not in self.commands and not Path(args[0]).exists():
            near = get_close_matches(args[0], list(self.commands), n=1)
            if near:
                ctx.fail(f"No command and no file {args[0]!r}. Did you mean {near[0]!r}?")
        if args and args[0] not in self.commands and args[0] not in own:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=DefaultGroup,
    commands=[compress, plan, inspect, finetune, expand, bench],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """Compress a trained PyTorch checkpoint.

    LSTM and Linear weights become matrix product operators (MPO). No model code is needed, and none is run unless
    --model, --data or another option names it.
    `mpocompress MODEL ...` is short for `mpocompress compress MODEL ...`.

    \b
    mpocompress plan model.pt                       predict size and error
    mpocompress model.pt --bond 16 -o small.pt      compress, report the errors
    mpocompress model.pt --keep 1/8 -o small.pt --model net.py:build --calibrate
        net.py:batches                              compress with calibration
    mpocompress inspect small.pt                    show the report
    mpocompress finetune small.pt --model net.py:build --data net.py:train
        -o tuned.pt                                 reduce the loss of quality
    mpocompress expand small.pt -o dense.pt         write a dense checkpoint
    mpocompress bench small.pt                      compare the speed

    Exit codes: 0 success; 1 refused or failed, nothing written; 2 usage error; 3 written, but a part of the request was
    not met; 130 interrupted by Ctrl-C: nothing written, except the best weights so far by finetune.
    """  # noqa: D301 - click reads the backspace


def main() -> None:
    """Run the command line and exit with its exit code."""
    try:
        code = cli.main(prog_name="mpocompress", standalone_mode=False)
    except MPOCompressError as error:
        hint = next((text for kind, text in HINTS.items() if isinstance(error, kind)), "")
        _leave(f"Error: {error}" + (f" {hint}" if hint else ""), 1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _leave("Stopped; nothing was written.", INTERRUPTED)
    except MemoryError:
        _leave(
            "Error: out of memory; nothing was written. If the command has --jobs, --jobs 1 needs the least memory.", 1
        )
    sys.exit(code if isinstance(code, int) else 0)


def _leave(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)
