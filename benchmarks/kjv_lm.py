"""Train a character language model on the King James Bible, for `benchmarks/quality.py`.

    apt-get install bible-kjv bible-kjv-text
    bible -f gen1:1-rev22:21 | cut -d' ' -f2- > kjv.txt     # 31,102 verses, one per line; 4,137,850 bytes
    python -m benchmarks.kjv_lm --text kjv.txt --out kjv.pt

Takes 20 to 25 minutes on one core with bfloat16 in hardware, and twice that with `--float32`. The text is split by
position: its last 5 %, from the letter to the Colossians on, are the test text and are not used in training;
calibration texts are part of the training text. The weights of the last epoch are saved: a perplexity of 3.01 on the
test text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor, nn

TEST_SHARE = 0.05
RESET_EVERY = 10
"""Windows after which a stream starts again without a memory, so that the model learns to do without one too."""

State = tuple[Tensor, Tensor]


class CharacterModel(nn.Module):
    """Predict the next character from the preceding ones: an embedding, one LSTM layer and a linear head."""

    def __init__(self, characters: int) -> None:
        """Create the layers for an alphabet of this size."""
        super().__init__()
        self.embedding = nn.Embedding(characters, 128)
        self.lstm = nn.LSTM(128, 512, batch_first=True)
        self.head = nn.Linear(512, characters)

    def forward(
        self,
        tokens: Tensor,  # shape: (batch, length)
    ) -> Tensor:  # shape: (batch, length, characters)
        """The logits of the next character at every position, from a zero state."""
        return self.read(tokens, None)[0]

    def read(
        self,
        tokens: Tensor,  # shape: (batch, length)
        state: State | None,
    ) -> tuple[Tensor, State]:
        """The logits as in `forward`, starting from a state, and the final state."""
        hidden, state = self.lstm(self.embedding(tokens), state)
        return self.head(hidden), state


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text as character indices.

    Args:
        alphabet: Its characters in order.
        train: The training tokens.
        test: The test tokens, from the end of the text.
    """

    alphabet: str
    train: Tensor
    test: Tensor


def read_text(path: Path) -> Text:
    """Read and split a text."""
    letters = path.read_text(encoding="utf-8")
    alphabet = "".join(sorted(set(letters)))
    number = {letter: place for place, letter in enumerate(alphabet)}
    tokens = torch.tensor([number[letter] for letter in letters])
    border = len(tokens) - round(TEST_SHARE * len(tokens))
    return Text(alphabet=alphabet, train=tokens[:border], test=tokens[border:])


def load(path: Path, text: Text) -> CharacterModel:
    """Load a checkpoint that this script wrote.

    Raises:
        click.ClickException: If it was trained on another alphabet.
    """
    held = torch.load(path, weights_only=True)
    if held["alphabet"] != text.alphabet:
        raise click.ClickException(
            f"{path}: trained on the characters {held['alphabet']!r}, the text has {text.alphabet!r}. "
            "Give the text that it was trained on."
        )
    model = CharacterModel(len(text.alphabet)).eval()
    model.load_state_dict(held["model_state_dict"])
    return model


def streams(
    tokens: Tensor,  # shape: (length,)
    count: int,
) -> Tensor:  # shape: (count, length of a stream)
    """Cut a text into parallel streams of equal length; the remainder at the end is dropped."""
    return tokens[: len(tokens) // count * count].reshape(count, -1)


def windows(side_by_side: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and the characters that follow them, window by window."""
    for start in range(0, side_by_side.shape[1] - 1, length):
        wanted = side_by_side[:, start + 1 : start + 1 + length]
        yield side_by_side[:, start : start + wanted.shape[1]], wanted


def perplexity(model: nn.Module, tokens: Tensor, count: int = 40, length: int = 250) -> float:
    """The exponential of the mean negative log-likelihood of a text, with carried state.

    Args:
        model: A model with the method `read` of `CharacterModel`.
        tokens: The text.
        count: Number of parallel streams; each begins with a zero state.
        length: Length of a window, which bounds the memory use.
    """
    total, read, state = 0.0, 0, None
    with torch.inference_mode():
        for tokens_in, wanted in windows(streams(tokens, count), length):
            logits, state = model.read(tokens_in, state)  # type: ignore[operator] # a compressed model has it too
            total += float(nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum"))
            read += wanted.numel()
    return math.exp(total / read)


def train(text: Text, *, epochs: int, batch: int, length: int, rate: float, seed: int, low: bool) -> CharacterModel:
    """Train from scratch with Adam, a short warm-up and a cosine schedule; sets torch's global seed.

    Args:
        text: The text, of which the training part is used.
        epochs: Passes over the text.
        batch: Parallel streams.
        length: Characters per window.
        rate: Largest learning rate.
        seed: Seed of the weights and of the offsets of the streams.
        low: Whether products are computed in bfloat16; weights are float32.
    """
    torch.manual_seed(seed)
    model = CharacterModel(len(text.alphabet)).train()
    steps = epochs * math.ceil((len(text.train) // batch - length) / length)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps + epochs, pct_start=0.05, cycle_momentum=False, final_div_factor=100
    )
    for epoch in range(1, epochs + 1):
        started, total, seen, state = time.perf_counter(), 0.0, 0, None
        offset = int(torch.randint(length * batch, ()))
        for place, (tokens, wanted) in enumerate(windows(streams(text.train[offset:], batch), length)):
            if place % RESET_EVERY == 0:
                state = None
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                logits, (hidden, cell) = model.read(tokens, state)
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            state = (hidden.detach(), cell.detach())
            total, seen = total + loss.item() * wanted.numel(), seen + wanted.numel()
        wall_s = time.perf_counter() - started
        click.echo(f"epoch {epoch} of {epochs}: training perplexity {math.exp(total / seen):.3f}, {wall_s:.0f} s")
    return model.eval()


FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--text", type=FILE, required=True, help="The text, made as described at the top of this file.")
@click.option("--out", type=FILE, required=True, help="The checkpoint to write.")
@click.option("--epochs", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Parallel streams.")
@click.option("--length", type=click.IntRange(min=2), default=128, show_default=True, help="Characters per window.")
@click.option("--rate", type=float, default=4e-3, show_default=True, help="Largest learning rate.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--float32", is_flag=True, help="Compute products in float32.")
def main(text: Path, out: Path, epochs: int, batch: int, length: int, rate: float, seed: int, float32: bool) -> None:
    """Train, print the perplexity of the test text, and write the checkpoint."""
    torch.set_num_threads(1)
    split = read_text(text)
    model = train(split, epochs=epochs, batch=batch, length=length, rate=rate, seed=seed, low=not float32)
    test_perplexity = perplexity(model, split.test)
    click.echo(f"perplexity of the {len(split.test):,} characters of the test text: {test_perplexity:.3f}")
    torch.save({"model_state_dict": model.state_dict(), "alphabet": split.alphabet, "perplexity": test_perplexity}, out)
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
