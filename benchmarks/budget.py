"""Compare rules that distribute a parameter budget over the matrices of a model without data.

    python benchmarks/budget.py --markdown table.md
    python benchmarks/budget.py --minilm FOLDER --text FILE --resemblyzer FOLDER --audio FOLDER --markdown table.md

The column `mpocompress` is the released code: `compress` with a fraction to keep, then `expand`. The other rules are
implemented here, with one low rank per tensor. `benchmarks/README.md` describes the models and inputs.
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
LARGEST_ERROR = 1 - 1e-6
"""Squared relative errors are clipped here, so that the logarithm stays finite."""
LOSSES: Mapping[str, Callable[[NDArray[np.float64], float], NDArray[np.float64]]] = {
    "absolute error": lambda errors, squared_norm: errors * squared_norm,
    "relative error": lambda errors, _: errors,
    "product": lambda errors, _: -np.log1p(-np.minimum(errors, LARGEST_ERROR)),
}
"""Rule -> (squared relative errors of a tensor, its squared norm) -> losses, whose sum it minimises."""
LEAST_LETTERS = 30
TOKENS = 64
SILENCE_DB = 30

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to compress and its scores.

    Args:
        name: Title of its tables.
        state: The dense weights.
        figures: Names of the scores.
        score: Dense weights -> scores, larger is better.
        note: Description of the scores for the reader.
    """

    name: str
    state: StateDict
    figures: tuple[str, ...]
    score: Callable[[StateDict], tuple[float, ...]]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRanks:
    """All ways to store one tensor: every rank that makes it smaller, in rising order, then dense.

    Args:
        name: Name of the tensor.
        weight: The tensor.
        left: Left singular vectors times singular values.
        right: Right singular vectors as rows.
        squared_norm: Squared Frobenius norm of the tensor.
        parameters: Number of parameters of each option, rising.
        errors: Squared relative error of each option, falling.
    """

    name: str
    weight: Tensor
    left: Tensor
    right: Tensor
    squared_norm: float
    parameters: NDArray[np.int64]
    errors: NDArray[np.float64]

    def restored(self, option: int) -> Tensor:
        """The product of the factors, in the dtype of the tensor."""
        if option == len(self.parameters) - 1:
            return self.weight
        return (self.left[:, : option + 1] @ self.right[: option + 1]).to(self.weight.dtype)


def low_ranks(name: str, weight: Tensor) -> LowRanks:
    """Factorise a tensor once for all ranks."""
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
        errors=np.append(tails[ranks] / tails[0], 0.0),
    )


def same_fraction(tensors: Sequence[LowRanks], fraction: float) -> list[int]:
    """The largest rank of every tensor within the same fraction of its own parameters."""
    return [
        max(0, int(np.searchsorted(tensor.parameters, fraction * tensor.parameters[-1], side="right")) - 1)
        for tensor in tensors
    ]


def least_loss(tensors: Sequence[LowRanks], losses: Sequence[NDArray[np.float64]], budget: int) -> list[int]:
    """The option of every tensor that minimises the sum of losses within a budget.

    Bisection on a price per parameter; the rest of the budget is spent one step at a time.

    Args:
        tensors: The options of each tensor.
        losses: The loss of each option.
        budget: Parameters of all tensors together.
    """

    def cheapest(price: float) -> list[int]:
        return [int(np.argmin(loss + price * tensor.parameters)) for tensor, loss in zip(tensors, losses, strict=True)]

    def steps() -> Iterator[tuple[float, int]]:
        unused = budget - size(tensors, options)
        for index, (tensor, loss, option) in enumerate(zip(tensors, losses, options, strict=True)):
            if option + 1 < len(loss):
                cost = int(tensor.parameters[option + 1] - tensor.parameters[option])
                if cost <= unused:
                    yield float(loss[option] - loss[option + 1]) / cost, index

    low, high = -30.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if size(tensors, cheapest(10.0**middle)) <= budget else (middle, high)
    options = cheapest(10.0**high)
    while best_step := max(steps(), default=None):
        options[best_step[1]] += 1
    return options


def size(tensors: Sequence[LowRanks], options: Sequence[int]) -> int:
    """Parameters of all tensors together."""
    return sum(int(tensor.parameters[option]) for tensor, option in zip(tensors, options, strict=True))


def by_rules(tensors: Sequence[LowRanks], fraction: float) -> Iterator[tuple[str, StateDict]]:
    """Each rule of this file and its compressed tensors.

    Raises:
        click.ClickException: If a rule exceeds the budget.
    """
    budget = int(fraction * sum(int(tensor.parameters[-1]) for tensor in tensors))
    chosen = {UNIFORM: same_fraction(tensors, fraction)} | {
        rule: least_loss(tensors, [loss(tensor.errors, tensor.squared_norm) for tensor in tensors], budget)
        for rule, loss in LOSSES.items()
    }
    for rule, options in chosen.items():
        if size(tensors, options) > budget:
            raise click.ClickException(
                f"{rule}: {size(tensors, options):,} parameters, more than the {budget:,} allowed"
            )
        yield rule, {t.name: t.restored(option) for t, option in zip(tensors, options, strict=True)}


def run(subject: Subject) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Score every rule at every fraction; yield the title and the rows of a table for each score."""
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
                rule: subject.score({**subject.state, **compressed}) for rule, compressed in by_rules(tensors, fraction)
            }
            scores[label][SHIPPED] = subject.score(load_file(dense))
            click.echo(f"{subject.name}: keep {label} done", err=True)
    dense_scores = subject.score(subject.state)
    for index, figure in enumerate(subject.figures):
        rows = [(f"keep {label}", *(f"{scores[label][rule][index]:.3f}" for rule in HEADER[1:])) for label in FRACTIONS]
        yield f"{subject.name}: {figure}, dense {dense_scores[index]:.3f}", rows


HEADER = ("", UNIFORM, *LOSSES, SHIPPED)


def fashion() -> Subject:
    """The bundled Fashion-MNIST LSTM on the bundled held-out images."""
    example: Any = import_module("examples.fashion.net")
    heldout = load_file(FASHION / "heldout.safetensors")

    def score(state: StateDict) -> tuple[float, ...]:
        model = example.build()
        model.load_state_dict(dict(state))
        return (100 * example.accuracy(model, heldout["images"], heldout["labels"]),)

    return Subject(
        name="fashion",
        state=torch.load(FASHION / "fashion.pt", weights_only=True)["model_state_dict"],
        figures=("accuracy in %",),
        score=score,
        note=f"accuracy on {len(heldout['images']):,} held-out images",
    )


def sentences(folder: Path, text: Path, count: int) -> Subject:
    """all-MiniLM-L6-v2 on lines of a text.

    Args:
        folder: Weights, configuration and vocabulary.
        text: One sentence per line.
        count: Number of lines, selected at equal intervals.
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
    """The speaker encoder of Resemblyzer on the first 1.6 seconds of recordings.

    Args:
        folder: The folder of its `pretrained.pt`.
        audio: A folder with .wav files, at any depth.
        count: Number of recordings, selected at equal intervals among those that are long enough.
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

    return by_embedding("speech", state, embed, f"{len(chosen)} recordings of 1.6 s")


def by_embedding(name: str, state: StateDict, embed: Callable[[StateDict], Tensor], inputs: str) -> Subject:
    """A model whose score is the cosine of its embeddings to those of the dense model."""
    reference = embed(state)
    unit = normalize(reference, dim=1)
    others = float((unit.sum(0).square().sum() - len(unit)) / (len(unit) * (len(unit) - 1)))

    def score(state: StateDict) -> tuple[float, ...]:
        embeddings = embed(state)
        centred = cosine_similarity(embeddings - embeddings.mean(0), reference - reference.mean(0))
        return float(cosine_similarity(embeddings, reference).mean()), float(centred.mean())

    return Subject(
        name=name,
        state=state,
        figures=("cosine", "cosine of centred embeddings"),
        score=score,
        note=f"mean over {inputs}, to the embeddings of the dense model; two different inputs have {others:.3f}",
    )


@click.command()
@click.option("--minilm", type=click.Path(exists=True, file_okay=False, path_type=Path), help="all-MiniLM-L6-v2.")
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="One sentence per line.")
@click.option("--lines", type=click.IntRange(min=2), default=200, show_default=True, help="How many to use.")
@click.option("--resemblyzer", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Its package.")
@click.option("--audio", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Speech recordings, .wav.")
@click.option("--clips", type=click.IntRange(min=2), default=200, show_default=True, help="How many to use.")
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
    """Compare budget rules on trained models; print a table for each."""
    if (minilm is None) != (text is None) or (resemblyzer is None) != (audio is None):
        raise click.UsageError("--minilm goes with --text, and --resemblyzer with --audio.")
    torch.set_num_threads(1)
    subjects = [fashion()]
    if minilm is not None and text is not None:
        subjects.append(sentences(minilm, text, lines))
    if resemblyzer is not None and audio is not None:
        subjects.append(voices(resemblyzer, audio, clips))
    console = Console(width=WIDTH, highlight=False)
    page = [f"Command: `{command_line('benchmarks/budget.py')}`; {versions('torch', 'transformers', 'librosa')}."]
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
