"""The trained models of `benchmarks/quality.py`: each with unlabelled calibration inputs, and a score on other ones."""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from benchmarks import kjv_lm, speech
from benchmarks.inputs import spaced

FASHION = Path(__file__).resolve().parents[1] / "examples" / "fashion"
CALIBRATION_PARTIALS, TEST_PARTIALS = 400, 600
CALIBRATION_IMAGES = 1500
CALIBRATION_TEXTS, TEXT_LENGTH = 400, 150
BATCH = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to compress, and how to tell what is left of it.

    Args:
        name: shown above its tables.
        module: the dense model, in evaluation mode.
        calibration: what it may be called with while it is compressed; nothing of it is in the test.
        training: makes all that it may be trained on, of which the calibration is a part; nothing of it is in the test.
            Inputs, one after the other, or of `kjv` a text of tokens, shape (length,).
        figures: what `scores` returns, in words.
        larger_is_better: whether it is.
        scores: a model that is called like `module` -> how good it is on the test inputs, the main figure first.
        constant: main figure of one answer to every input; a model that does worse is of no use.
        decimals: of all figures, when they are shown.
        note: what a reader of the figures has to know.
    """

    name: str
    module: nn.Module
    calibration: Sequence[Tensor]
    training: Callable[[], Tensor]
    figures: tuple[str, ...]
    larger_is_better: bool
    scores: Callable[[nn.Module], tuple[float, ...]]
    constant: float
    decimals: int
    note: str

    def score(self, model: nn.Module) -> float:
        """The main figure."""
        return self.scores(model)[0]

    def shown(self, figure: float) -> str:
        """A figure in text."""
        return f"{figure:.{self.decimals}f}"

    def with_weights(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the model in which some weights are others."""
        twin = copy.deepcopy(self.module)
        held = {name: weight.to(self.module.state_dict()[name].dtype) for name, weight in weights.items()}
        twin.load_state_dict({**self.module.state_dict(), **held})
        return twin


def fashion(folder: Path | None, calibration: int = CALIBRATION_IMAGES, test: int | None = None) -> Subject:
    """The bundled Fashion-MNIST LSTM.

    Args:
        folder: the four files of the data set: calibration by training images, the test images all of them. None takes
            both, with nothing in common, from the 2,000 test images that are bundled; enough to see that all runs.
        calibration: how many images, the last ones.
        test: how many images, the first ones; all by default.
    """
    example: Any = import_module("examples.fashion.net")
    module: nn.Module = example.build().eval()
    module.load_state_dict(torch.load(FASHION / "fashion.pt", weights_only=True)["model_state_dict"])
    if folder is None:
        held = load_file(FASHION / "heldout.safetensors")
        shown, images, labels = held["images"], held["images"][:-calibration], held["labels"][:-calibration]
    else:
        data: Any = import_module("examples.fashion.data")
        shown, _ = data.read_split(folder, "train")
        images, labels = data.read_split(folder, "t10k")
    images, labels = images[:test], labels[:test]
    trained = shown if folder is not None else shown[len(images) :]

    def scores(model: nn.Module) -> tuple[float, ...]:
        return (100 * float(example.accuracy(model, images, labels)),)

    return Subject(
        name="fashion",
        module=module,
        calibration=torch.split(example.prepare(shown[-calibration:]), BATCH),
        training=lambda: example.prepare(trained),
        figures=("accuracy in %",),
        larger_is_better=True,
        scores=scores,
        constant=100 * int(labels.bincount().max()) / len(labels),
        decimals=1,
        note=f"accuracy on {len(images):,} test images; calibrated with {calibration:,} others, without their labels",
    )


def kjv(checkpoint: Path, text: Path) -> Subject:
    """The character language model that `benchmarks/kjv_lm.py` trained.

    Args:
        checkpoint: as it wrote it.
        text: what it was trained on.
    """
    held = kjv_lm.read_text(text)
    module = kjv_lm.load(checkpoint, held)
    dense = kjv_lm.perplexity(module, held.test)
    texts = torch.stack(spaced(torch.split(held.train, TEXT_LENGTH)[:-1], CALIBRATION_TEXTS, text))

    often = (held.train.bincount(minlength=len(held.alphabet)) + 1).double()
    alone = math.exp(-float((often / often.sum()).log()[held.test].mean()))

    def scores(model: nn.Module) -> tuple[float, ...]:
        return (kjv_lm.perplexity(model, held.test) / dense,)

    return Subject(
        name="kjv",
        module=module,
        calibration=torch.split(texts, BATCH),
        training=lambda: held.train,
        figures=("perplexity over that of the dense model",),
        larger_is_better=False,
        scores=scores,
        constant=alone / dense,
        decimals=3,
        note=f"the dense model has a perplexity of {dense:.3f} on the {len(held.test):,} characters of the test text; "
        f"calibrated with {len(texts)} x {TEXT_LENGTH} characters of the text that it was trained on",
    )


def resemblyzer(folder: Path, audio: Path, cache: Path | None = None) -> Subject:
    """The speaker encoder of Resemblyzer on recordings cut into pieces of 1.6 s.

    Args:
        folder: where its `pretrained.pt` is.
        audio: a folder with .wav files, at any depth.
        cache: a folder to keep the pieces in as the encoder reads them, and to take them from; it has to be emptied
            when the recordings change.
    """
    module = speech.pretrained(folder)
    pieces = _pieces(audio, cache)
    calibration = torch.stack(spaced(list(pieces["calibration"]), CALIBRATION_PARTIALS, audio))
    test = torch.stack(spaced(list(pieces["test"]), TEST_PARTIALS, audio))

    def embed(model: nn.Module, batches: Tensor = test) -> Tensor:
        with torch.inference_mode():
            return torch.cat([model(batch) for batch in torch.split(batches, BATCH)])

    wanted = embed(module)
    unit = normalize(wanted, dim=1)
    others = float((unit.sum(0).square().sum() - len(unit)) / (len(unit) * (len(unit) - 1)))
    mean = embed(module, calibration).mean(0)

    def scores(model: nn.Module) -> tuple[float, ...]:
        found = embed(model)
        centred = cosine_similarity(found - found.mean(0), wanted - wanted.mean(0))
        return float(cosine_similarity(found, wanted).mean()), float(centred.mean())

    return Subject(
        name="resemblyzer",
        module=module,
        calibration=torch.split(calibration, BATCH),
        training=lambda: pieces["calibration"],
        figures=("cosine to the embedding of the dense model", "the same, each model's mean embedding taken off"),
        larger_is_better=True,
        scores=scores,
        constant=float(cosine_similarity(mean[None], wanted).mean()),
        decimals=3,
        note=f"mean over {len(test)} pieces of 1.6 s; two different pieces have {others:.3f}; calibrated with "
        f"{len(calibration)} pieces of other recordings; speakers in both: {', '.join(_speakers(audio))}",
    )


def _speakers(audio: Path) -> list[str]:
    """Names of speakers as the packages write them, such as `en_US_f_Allison`."""
    found = Counter(re.findall(r"[a-z]{2}_[A-Z]{2}_[fm]_\w+", " ".join(str(path) for path in _recordings(audio))))
    return [name for name, _ in sorted(found.items())]


def _recordings(audio: Path) -> list[Path]:
    """The .wav files, each sound once."""
    distinct = {hashlib.sha256(path.read_bytes()).digest(): path for path in sorted(audio.rglob("*.wav"), reverse=True)}
    return sorted(distinct.values())


def _pieces(audio: Path, cache: Path | None) -> dict[str, Tensor]:
    """Pieces of every second recording for the test, of the others for calibration; whole pieces only, no overlap."""
    kept = None if cache is None else cache / "resemblyzer-pieces.safetensors"
    if kept is not None and kept.is_file():
        return load_file(kept)
    halves: dict[str, list[Tensor]] = {"test": [], "calibration": []}
    paths = _recordings(audio)
    for place, path in enumerate(paths):
        wave = speech.without_pauses(speech.recording(path))
        if len(wave) < speech.LEAST_SAMPLES:
            continue
        frames = torch.from_numpy(speech.mel(wave))
        whole = frames[: len(frames) // speech.FRAMES * speech.FRAMES].reshape(-1, speech.FRAMES, speech.MELS)
        halves["calibration" if place % 2 else "test"].extend(whole)
        if place % 500 == 0:
            click.echo(f"resemblyzer: {place} of {len(paths)} recordings read", err=True)
    pieces = {name: torch.stack(half) for name, half in halves.items()}
    if kept is not None:
        save_file(pieces, kept)
    return pieces
