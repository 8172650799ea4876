"""Rules that spread a parameter budget over the matrices of a model without data, judged by what the model then does.

    python benchmarks/budget.py --markdown table.md
    python benchmarks/budget.py --minilm FOLDER --text FILE --resemblyzer FOLDER --audio FOLDER --markdown table.md

The column `mpocompress` is the released code: `compress` with a fraction to keep, then `expand`. The other rules are
written here, with one low rank a tensor. What the models and inputs are is in `benchmarks/README.md`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

import mpocompress
from benchmarks import speech
from benchmarks.inputs import extra, spaced, versions
from benchmarks.tables import WIDTH, command_line, markdown_table, rich_table
from mpocompress import Truncation

FASHION = Path(__file__).resolve().parents[1] / "examples" / "fashion"
FRACTIONS: Mapping[str, float] = {"3/4": 3 / 4, "1/2": 1 / 2, "1/4": 1 / 4, "1/8": 1 / 8}
UNIFORM, SHIPPED = "same fraction", "mpocompress"
LARGEST_MISS = 1 - 1e-6
"""Share of the squared norm above which missing still more is no worse: the logarithm has to stay finite."""
LOSSES: Mapping[str, Callable[[NDArray[np.float64], float], NDArray[np.float64]]] = {
    "absolute error": lambda missed, squared_norm: missed * squared_norm,
    "relative error": lambda missed, _: missed,
    "product": lambda missed, _: -np.log1p(-np.minimum(missed, LARGEST_MISS)),
}
"""What a rule minimises the sum of: (squared relative errors of a tensor, its squared norm) -> losses."""
LEAST_LETTERS = 30
TOKENS = 64
SILENCE_DB = 30

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to compress, and how to tell what is left of it.

    Args:
        name: shown above its tables.
        state: the dense weights.
        figures: what `score` returns, in words.
        score: dense weights -> figures, larger is better.
        note: what a reader of the figures has to know.
    """

    name: str
    state: StateDict
    figures: tuple[str, ...]
    score: Callable[[StateDict], tuple[float, ...]]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRanks:
    """One tensor in every rank that makes it smaller, the least first, and dense as the last way to store it.

    Args:
        name: of the tensor.
        weight: the tensor.
        left: left singular vectors times singular values.
        right: right singular vectors, a row each.
        squared_norm: of the tensor.
        parameters: cost of each way, rising.
        missed: squared relative error of each way, falling.
    """

    name: str
    weight: Tensor
    left: Tensor
    right: Tensor
    squared_norm: float
    parameters: NDArray[np.int64]
    missed: NDArray[np.float64]

    def restored(self, way: int) -> Tensor:
        """The tensor multiplied out again, in its own dtype."""
        if way == len(self.parameters) - 1:
            return self.weight
        return (self.left[:, : way + 1] @ self.right[: way + 1]).to(self.weight.dtype)


def low_ranks(name: str, weight: Tensor) -> LowRanks:
    """Factorise one tensor once for all ranks."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    rows, cols = weight.shape
    ranks = np.arange(1, (rows * cols - 1) // (rows + cols) + 1)
    tails = (values**2).flip(0).cumsum(0).flip(0).numpy()
    return LowRanks(
        name=name,
        weight=weight,
        left=left * values,
        right=right,
        squared_norm=float(tails[0]),
        parameters=np.append(ranks * (rows + cols), rows * cols),
        missed=np.append(tails[ranks] / tails[0], 0.0),
    )


def same_fraction(tensors: Sequence[LowRanks], fraction: float) -> list[int]:
    """The largest rank of every tensor within the same fraction of its own parameters."""
    return [
        max(0, int(np.searchsorted(one.parameters, fraction * one.parameters[-1], side="right")) - 1) for one in tensors
    ]


def least_loss(tensors: Sequence[LowRanks], losses: Sequence[NDArray[np.float64]], budget: int) -> list[int]:
    """The least sum of losses within a budget: one price per parameter, and what it leaves over spent step by step.

    Args:
        tensors: the ways to store each tensor.
        losses: the loss of each way.
        budget: parameters of all tensors together.

    Returns:
        A way for every tensor.
    """

    def at(price: float) -> list[int]:
        return [int(np.argmin(loss + price * one.parameters)) for one, loss in zip(tensors, losses, strict=True)]

    def steps() -> Iterator[tuple[float, int]]:
        left = budget - size(tensors, ways)
        for place, (one, loss, way) in enumerate(zip(tensors, losses, ways, strict=True)):
            if way + 1 < len(loss) and (cost := int(one.parameters[way + 1] - one.parameters[way])) <= left:
                yield float(loss[way] - loss[way + 1]) / cost, place

    low, high = -30.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if size(tensors, at(10.0**middle)) <= budget else (middle, high)
    ways = at(10.0**high)
    while found := max(steps(), default=None):
        ways[found[1]] += 1
    return ways


def size(tensors: Sequence[LowRanks], ways: Sequence[int]) -> int:
    """Parameters of all tensors together."""
    return sum(int(one.parameters[way]) for one, way in zip(tensors, ways, strict=True))


def by_rules(tensors: Sequence[LowRanks], fraction: float) -> Iterator[tuple[str, StateDict]]:
    """Name of each rule written here, and the tensors it leaves.

    Raises:
        click.ClickException: a rule that needs more than the budget.
    """
    budget = int(fraction * sum(int(one.parameters[-1]) for one in tensors))
    chosen = {UNIFORM: same_fraction(tensors, fraction)} | {
        rule: least_loss(tensors, [loss(one.missed, one.squared_norm) for one in tensors], budget)
        for rule, loss in LOSSES.items()
    }
    for rule, ways in chosen.items():
        if size(tensors, ways) > budget:
            raise click.ClickException(f"{rule}: {size(tensors, ways):,} parameters, more than the {budget:,} allowed")
        yield rule, {one.name: one.restored(way) for one, way in zip(tensors, ways, strict=True)}


def run(subject: Subject) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Score every rule at every fraction.

    Args:
        subject: the model.

    Yields:
        Each figure in words, and its table: a row a fraction, a column a rule.
    """
    scores: dict[str, dict[str, tuple[float, ...]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in subject.state.items()}, source)
        eligible = mpocompress.plan(source, truncations=[Truncation(max_bond=1)]).checkpoint.matrices
        names = [member for matrix in eligible for member in matrix.members]
        tensors = [low_ranks(name, subject.state[name]) for name in names]
        for label, fraction in FRACTIONS.items():
            small, dense = Path(folder, "small.safetensors"), Path(folder, "dense.safetensors")
            mpocompress.compress(source, small, truncation=Truncation(keep=fraction), overwrite=True)
            mpocompress.expand(small, dense, overwrite=True)
            scores[label] = {
                rule: subject.score({**subject.state, **left}) for rule, left in by_rules(tensors, fraction)
            }
            scores[label][SHIPPED] = subject.score(load_file(dense))
            click.echo(f"{subject.name}: keep {label} done", err=True)
    whole = subject.score(subject.state)
    for place, figure in enumerate(subject.figures):
        rows = [(f"keep {label}", *(f"{scores[label][rule][place]:.3f}" for rule in HEADER[1:])) for label in FRACTIONS]
        yield f"{subject.name}: {figure}, dense {whole[place]:.3f}", rows


HEADER = ("", UNIFORM, *LOSSES, SHIPPED)


def fashion() -> Subject:
    """The bundled Fashion-MNIST LSTM on the bundled held-out images."""
    example: Any = import_module("examples.fashion.net")
    held = load_file(FASHION / "heldout.safetensors")

    def score(state: StateDict) -> tuple[float, ...]:
        model = example.build()
        model.load_state_dict(dict(state))
        return (100 * example.accuracy(model, held["images"], held["labels"]),)

    return Subject(
        name="fashion",
        state=torch.load(FASHION / "fashion.pt", weights_only=True)["model_state_dict"],
        figures=("accuracy in %",),
        score=score,
        note=f"accuracy on {len(held['images']):,} held-out images",
    )


def sentences(folder: Path, text: Path, count: int) -> Subject:
    """all-MiniLM-L6-v2 on lines of a text.

    Args:
        folder: weights, configuration and vocabulary.
        text: a sentence a line.
        count: how many lines, taken at equal distances.
    """
    transformers = extra("transformers")
    model: nn.Module = transformers.AutoModel.from_pretrained(folder, local_files_only=True).float().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if len(line) > LEAST_LETTERS]
    chosen = sorted(spaced(lines, count, text), key=len)
    batches = [
        tokenizer(chosen[first : first + 20], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        for first in range(0, len(chosen), 20)
    ]

    def embed(state: StateDict) -> Tensor:
        model.load_state_dict(dict(state))
        with torch.inference_mode():
            pooled = []
            for batch in batches:
                mask = batch["attention_mask"][..., None]
                pooled.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
            return torch.cat(pooled)

    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return by_embedding("sentences", state, embed, f"{len(chosen)} lines of at most {TOKENS} tokens")


def voices(folder: Path, audio: Path, count: int) -> Subject:
    """The speaker encoder of Resemblyzer on the first 1.6 seconds of spoken clips.

    Args:
        folder: where its `pretrained.pt` is; a torch file of the old kind, which mpocompress does not read.
        audio: a folder with .wav files, at any depth.
        count: how many clips, taken at equal distances among those that are long enough.
    """
    model = speech.pretrained(folder)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def mel(path: Path) -> NDArray[np.float32]:
        wave = speech.recording(path)
        spoken = [wave[start:end] for start, end in extra("librosa").effects.split(wave, top_db=SILENCE_DB)]
        return speech.mel(np.concatenate(spoken))[: speech.FRAMES]

    clips = [clip for path in sorted(audio.rglob("*.wav")) if len(clip := mel(path)) == speech.FRAMES]
    chosen = torch.from_numpy(np.stack(spaced(clips, count, audio)))

    def embed(state: StateDict) -> Tensor:
        model.load_state_dict(dict(state))
        with torch.inference_mode():
            return torch.cat([model(batch) for batch in torch.split(chosen, 20)])

    return by_embedding("speech", state, embed, f"{len(chosen)} clips of 1.6 s")


def by_embedding(name: str, state: StateDict, embed: Callable[[StateDict], Tensor], inputs: str) -> Subject:
    """A model that is judged by how near its embeddings stay to those of its dense weights."""
    wanted = embed(state)
    unit = normalize(wanted, dim=1)
    others = float((unit.sum(0).square().sum() - len(unit)) / (len(unit) * (len(unit) - 1)))

    def score(state: StateDict) -> tuple[float, ...]:
        found = embed(state)
        centred = cosine_similarity(found - found.mean(0), wanted - wanted.mean(0))
        return float(cosine_similarity(found, wanted).mean()), float(centred.mean())

    return Subject(
        name=name,
        state=state,
        figures=("cosine", "cosine of centred embeddings"),
        score=score,
        note=f"mean over {inputs}, to the embeddings of the dense weights; two different inputs have {others:.3f}",
    )


@click.command()
@click.option("--minilm", type=click.Path(exists=True, file_okay=False, path_type=Path), help="all-MiniLM-L6-v2.")
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A sentence a line.")
@click.option("--lines", type=click.IntRange(min=2), default=200, show_default=True, help="How many of them.")
@click.option("--resemblyzer", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Its package.")
@click.option("--audio", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Spoken .wav files.")
@click.option("--clips", type=click.IntRange(min=2), default=200, show_default=True, help="How many of them.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables here.")
def main(
    minilm: Path | None,
    text: Path | None,
    lines: int,
    resemblyzer: Path | None,
    audio: Path | None,
    clips: int,
    markdown: Path | None,
) -> None:
    """Compare rules for a budget on real models; print a table for each."""
    if (minilm is None) != (text is None) or (resemblyzer is None) != (audio is None):
        raise click.UsageError("--minilm goes with --text, and --resemblyzer with --audio.")
    torch.set_num_threads(1)
    subjects = [fashion()]
    if minilm is not None and text is not None:
        subjects.append(sentences(minilm, text, lines))
    if resemblyzer is not None and audio is not None:
        subjects.append(voices(resemblyzer, audio, clips))
    console = Console(width=WIDTH, highlight=False)
    page = [f"Made by `{command_line('benchmarks/budget.py')}`; {versions('torch', 'transformers', 'librosa')}."]
    for subject in subjects:
        for title, rows in run(subject):
            console.print(rich_table(title, HEADER, rows))
            page.extend(markdown_table(title, HEADER, rows))
        console.print(f"  {subject.note}\n", markup=False)
        page.extend(("", f"{subject.name}: {subject.note}."))
    if markdown is not None:
        markdown.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
