"""Train the Fashion-MNIST example and write `fashion.pt` and `heldout.safetensors` beside this file.

The data is that of Debian's package (`apt-get install dataset-fashion-mnist`); `--data` names another folder with the
same four files. The last epoch is kept, not the best one.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from data import DEBIAN_FOLDER, read_split
from model import FashionLSTM, accuracy, build, prepare
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
HELDOUT_COUNT = 2_000


def augment(
    images: Tensor,  # shape: (batch, 28, 28)
    random: torch.Generator,
    max_shift: int,
) -> Tensor:  # shape: (batch, 28, 28)
    """Return a copy of the images, about half of them mirrored and each shifted at random.

    Args:
        images: Grey images with a black background, which fills the border that a shift uncovers.
        random: Draws the shifts and which images are mirrored.
        max_shift: The largest shift in pixels, up, down, left or right; 0 for none.
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

    Sets torch's global seed, which draws the initial weights. Prints one line an epoch.

    Args:
        images: The training images.
        labels: Their class numbers.
        epochs: How often each image is seen.
        batch_size: Images in one step; what is left at the end of an epoch is skipped.
        learning_rate: The largest step size of the schedule.
        max_shift: As for `augment`.
        seed: Draws the initial weights, the order and the augmentation.
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
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the two files that are written")
    parser.add_argument("--epochs", type=int, default=8, help="how often each image is seen")
    parser.add_argument("--batch-size", type=int, default=128, help="images in one step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="largest step size")
    parser.add_argument("--max-shift", type=int, default=0, help="random shift of the training images, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="draws the weights, the order, the augmentation")
    parser.add_argument("--threads", type=int, default=1, help="of torch; another number rounds differently")
    return parser.parse_args()


def main() -> int:
    """Train, print the accuracy on all test images, write both files, and return the exit status."""
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
    reached = accuracy(model, test_images, test_labels)
    print(f"accuracy on the {len(test_images):,} test images: {100 * reached:.2f} %")
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = {"epoch": options.epochs, "model_state_dict": model.state_dict(), "accuracy": reached}
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
