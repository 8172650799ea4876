"""Train the Fashion-MNIST example and write `fashion.pt` and `heldout.safetensors` beside this file.

The data comes from a Debian package (`apt-get install dataset-fashion-mnist`) or from the folder given by `--data`.
The weights of the last epoch are saved, not those of the best one.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from data import DEBIAN_FOLDER, read_split
from net import FashionLSTM, accuracy, build, prepare
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
HELDOUT_COUNT = 2_000


def augment(
    images: Tensor,  # shape: (batch, 28, 28)
    random: torch.Generator,
    max_shift: int,
) -> Tensor:  # shape: (batch, 28, 28)
    """Return a copy of the images, each mirrored with probability 1/2 and shifted by up to `max_shift` pixels.

    The border that a shift uncovers is black.
    """
    count, height, width = images.shape
    padded = nn.functional.pad(images, (max_shift,) * 4)
    shifts = torch.randint(0, 2 * max_shift + 1, (2, count, 1), generator=random)
    mirrored = torch.rand((count, 1), generator=random) < 0.5
    rows = torch.arange(height) + shifts[0]
    columns = torch.arange(width) + shifts[1]
    columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def train(
    images: Tensor,  # shape: (count, 28, 28), uint8
    labels: Tensor,  # shape: (count,), uint8
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    max_shift: int,
    seed: int,
) -> FashionLSTM:
    """Return a network trained from scratch with Adam, a short warm-up and a cosine schedule.

    Sets torch's global seed and prints one line per epoch.

    Args:
        images: Training images.
        labels: Their class numbers.
        epochs: Passes over the images.
        batch_size: Images per step; an incomplete last batch is skipped.
        learning_rate: Largest learning rate of the schedule.
        max_shift: Largest random shift in pixels.
        seed: Seed of the initial weights, the order of the images and the augmentation.
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model = build().train()
    targets = labels.long()
    steps_in_epoch = len(images) // batch_size
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * steps_in_epoch, pct_start=0.1, cycle_momentum=False
    )
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        order = torch.randperm(len(images), generator=random)[: steps_in_epoch * batch_size]
        total_loss = 0.0
        for chosen in torch.split(order, batch_size):
            loss = nn.functional.cross_entropy(
                model(prepare(augment(images[chosen], random, max_shift))), targets[chosen]
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total_loss += loss.item()
        wall_s = time.perf_counter() - started
        print(
            f"epoch {epoch:2d} of {epochs}: training loss {total_loss / steps_in_epoch:.4f}, {wall_s:.0f} s", flush=True
        )
    return model


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEBIAN_FOLDER, help="folder with the four idx files")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the two output files")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the images")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="largest learning rate")
    parser.add_argument("--max-shift", type=int, default=0, help="largest random shift of a training image, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; affects rounding")
    return parser.parse_args()


def main() -> int:
    """Train, print the accuracy on all test images, write both files, and return the exit code."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    try:
        train_images, train_labels = read_split(options.data, "train")
        test_images, test_labels = read_split(options.data, "t10k")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    model = train(
        train_images,
        train_labels,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        max_shift=options.max_shift,
        seed=options.seed,
    )
    test_accuracy = accuracy(model, test_images, test_labels)
    print(f"accuracy on the {len(test_images):,} test images: {100 * test_accuracy:.2f} %")
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = {"epoch": options.epochs, "model_state_dict": model.state_dict(), "accuracy": test_accuracy}
    torch.save(checkpoint, options.out / "fashion.pt")
    heldout = {
        "images": test_images[:HELDOUT_COUNT].contiguous(),
        "labels": test_labels[:HELDOUT_COUNT].contiguous(),
    }
    save_file(heldout, options.out / "heldout.safetensors")
    print(f"wrote {options.out / 'fashion.pt'} and {options.out / 'heldout.safetensors'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
