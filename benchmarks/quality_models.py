"""The trained models of `benchmarks/quality.py`, each with calibration inputs and a score on other inputs."""

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
    """A model to compress and its scores.

    Args:
        name: Title of its tables.
        module: The dense model, in evaluation mode.
        calibration: Calibration inputs; disjoint from the test.
        training: Returns all training inputs, of which the calibration inputs are a part; disjoint from the test. For
            `kjv` a text of tokens, shape (length,).
        figures: Names of the scores.
        larger_is_better: Whether larger scores are better.
        scores: Model -> scores on the test inputs, the main score first.
        constant: Main score of a constant output; a model below it is useless.
        decimals: Decimals of all scores.
        note: Description of the scores for the reader.
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
        """The main score."""
        return self.scores(model)[0]

    def shown(self, figure: float) -> str:
        """A score as text."""
        return f"{figure:.{self.decimals}f}"

    def with_weights(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the model with some weights replaced."""
        twin = copy.deepcopy(self.module)
        replaced = {name: weight.to(self.module.state_dict()[name].dtype) for name, weight in weights.items()}
        twin.load_state_dict({**self.module.state_dict(), **replaced})
        return twin


def fashion(folder: Path | None, calibration: int = CALIBRATION_IMAGES, test: int | None = None) -> Subject:
    """The bundled Fashion-MNIST LSTM.

    Args:
        folder: The four files of the data set: training images for calibration, all test images for the test. With
            None, both are disjoint parts of the 2,000 bundled test images, which suffices for a functional test.
        calibration: Number of calibration images, from the end.
        test: Number of test images, from the start; all by default.
    """
    example: Any = import_module("examples.fashion.net")
    module: nn.Module = example.build().eval()
    module.load_state_dict(torch.load(FASHION / "fashion.pt", weights_only=True)["model_state_dict"])
    if folder is None:
        heldout = load_file(FASHION / "heldout.safetensors")
        pool = heldout["images"]
        images, labels = pool[:-calibration], heldout["labels"][:-calibration]
    else:
        data: Any = import_module("examples.fashion.data")
        pool, _ = data.read_split(folder, "train")
        images, labels = data.read_split(folder, "t10k")
    images, labels = images[:test], labels[:test]
    training = pool if folder is not None else pool[len(images) :]

    def scores(model: nn.Module) -> tuple[float, ...]:
        return (100 * float(example.accuracy(model, images, labels)),)

    return Subject(
        name="fashion",
        module=module,
        calibration=torch.split(example.prepare(pool[-calibration:]), BATCH),
        training=lambda: example.prepare(training),
        figures=("accuracy in %",),
        larger_is_better=True,
        scores=scores,
        constant=100 * int(labels.bincount().max()) / len(labels),
        decimals=1,
        note=f"accuracy on {len(images):,} test images; calibrated with {calibration:,} other images, without labels",
    )


def kjv(checkpoint: Path, text: Path) -> Subject:
    """The character language model trained by `benchmarks/kjv_lm.py`.

    Args:
        checkpoint: Its checkpoint.
        text: Its text.
    """
    corpus = kjv_lm.read_text(text)
    module = kjv_lm.load(checkpoint, corpus)
    dense = kjv_lm.perplexity(module, corpus.test)
    texts = torch.stack(spaced(torch.split(corpus.train, TEXT_LENGTH)[:-1], CALIBRATION_TEXTS, text))

    counts = (corpus.train.bincount(minlength=len(corpus.alphabet)) + 1).double()
    constant = math.exp(-float((counts / counts.sum()).log()[corpus.test].mean()))

    def scores(model: nn.Module) -> tuple[float, ...]:
        return (kjv_lm.perplexity(model, corpus.test) / dense,)

    return Subject(
        name="kjv",
        module=module,
        calibration=torch.split(texts, BATCH),
        training=lambda: corpus.train,
        figures=("perplexity over that of the dense model",),
        larger_is_better=False,
        scores=scores,
        constant=constant / dense,
        decimals=3,
        note=f"the dense model has a perplexity of {dense:.3f} on the {len(corpus.test):,} characters of the test "
        f"text; calibrated with {len(texts)} x {TEXT_LENGTH} characters of its training text",
    )


def resemblyzer(folder: Path, audio: Path, cache: Path | None = None) -> Subject:
    """The speaker encoder of Resemblyzer on recordings cut into segments of 1.6 s.

    Args:
        folder: The folder of its `pretrained.pt`.
        audio: A folder with .wav files, at any depth.
        cache: A folder that stores the preprocessed segments; clear it if the recordings change.
    """
    module = speech.pretrained(folder)
    segments = _segments(audio, cache)
    calibration = torch.stack(spaced(list(segments["calibration"]), CALIBRATION_PARTIALS, audio))
    test = torch.stack(spaced(list(segments["test"]), TEST_PARTIALS, audio))

    def embed(model: nn.Module, batches: Tensor = test) -> Tensor:
        with torch.inference_mode():
            return torch.cat([model(batch) for batch in torch.split(batches, BATCH)])

    reference = embed(module)
    unit = normalize(reference, dim=1)
    others = float((unit.sum(0).square().sum() - len(unit)) / (len(unit) * (len(unit) - 1)))
    mean = embed(module, calibration).mean(0)

    def scores(model: nn.Module) -> tuple[float, ...]:
        embeddings = embed(model)
        centred = cosine_similarity(embeddings - embeddings.mean(0), reference - reference.mean(0))
        return float(cosine_similarity(embeddings, reference).mean()), float(centred.mean())

    return Subject(
        name="resemblyzer",
        module=module,
        calibration=torch.split(calibration, BATCH),
        training=lambda: segments["calibration"],
        figures=(
            "cosine to the embedding of the dense model",
            "the same after subtraction of each model's mean embedding",
        ),
        larger_is_better=True,
        scores=scores,
        constant=float(cosine_similarity(mean[None], reference).mean()),
        decimals=3,
        note=f"mean over {len(test)} segments of 1.6 s; the mean cosine of two different segments is {others:.3f}; "
        f"calibrated with {len(calibration)} segments of other recordings; speakers in both: "
        f"{', '.join(_speakers(audio))}",
    )


def _speakers(audio: Path) -> list[str]:
    """Names of speakers in the paths of the packages, such as `en_US_f_Allison`."""
    names = Counter(re.findall(r"[a-z]{2}_[A-Z]{2}_[fm]_\w+", " ".join(str(path) for path in _recordings(audio))))
    return [name for name, _ in sorted(names.items())]


def _recordings(audio: Path) -> list[Path]:
    """The distinct .wav files."""
    distinct = {hashlib.sha256(path.read_bytes()).digest(): path for path in sorted(audio.rglob("*.wav"), reverse=True)}
    return sorted(distinct.values())


def _segments(audio: Path, cache: Path | None) -> dict[str, Tensor]:
    """Complete, disjoint segments: of every second recording for the test, of the others for calibration."""
    stored = None if cache is None else cache / "resemblyzer-segments.safetensors"
    if stored is not None and stored.is_file():
        return load_file(stored)
    halves: dict[str, list[Tensor]] = {"test": [], "calibration": []}
    paths = _recordings(audio)
    for index, path in enumerate(paths):
        wave = speech.without_pauses(speech.recording(path))
        if len(wave) < speech.LEAST_SAMPLES:
            continue
        frames = torch.from_numpy(speech.mel(wave))
        whole = frames[: len(frames) // speech.FRAMES * speech.FRAMES].reshape(-1, speech.FRAMES, speech.MELS)
        halves["calibration" if index % 2 else "test"].extend(whole)
        if index % 500 == 0:
            click.echo(f"resemblyzer: {index} of {len(paths)} recordings read", err=True)
    segments = {name: torch.stack(half) for name, half in halves.items()}
    if stored is not None:
        save_file(segments, stored)
    return segments
