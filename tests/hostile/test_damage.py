"""Damaged files, and what must not be lost on the way: through the library, without a process of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.writing.writer import write_checkpoint
from mpocompress.errors import CheckpointError
from tests.checkpoint.files import flip_byte, rezip, state_dict
from tests.hostile.files import Calls


def test_a_canary_sings_when_it_is_let(tmp_path: Path) -> None:
    """What the hostile pickles hold does run, where something runs it."""
    canary = tmp_path / "canary"
    torch.save({"x": Calls(exec, f"open({str(canary)!r}, 'w').close()")}, tmp_path / "model.pt")

    torch.load(tmp_path / "model.pt", weights_only=False)

    assert canary.exists()


def test_sharing_that_would_unfold_to_billions_stays_small(tmp_path: Path) -> None:
    value: list[Any] = [1]
    for _ in range(60):
        value = [value, value]
    torch.save({"model": state_dict(), "x": value}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        size_bytes = write_checkpoint(
            tmp_path / "out.pt",
            tensors=state_dict(),
            aliases={},
            container="torch-zip",
            key="model",
            extras=checkpoint.extras,
            metadata={},
            document=None,
            overwrite=False,
            inputs=[],
        )
    assert size_bytes < 10_000


def test_a_flipped_byte_in_a_tensor_is_found_when_it_is_read(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "model.pt")
    flip_byte(tmp_path / "model.pt", "data/0")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert torch.equal(checkpoint.tensor("fc.bias"), state_dict()["fc.bias"])
        for _ in range(2):  # and again
            with pytest.raises(CheckpointError, match="record data/0 does not match its checksum; its data is damaged"):
                checkpoint.tensor("fc.weight")


def test_a_flipped_byte_beside_the_weights_is_found_when_it_is_read(tmp_path: Path) -> None:
    torch.save({"model": state_dict(), "table": torch.ones(4, 4)}, tmp_path / "model.pt")
    flip_byte(tmp_path / "model.pt", "data/3")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert torch.equal(checkpoint.tensor("fc.weight"), state_dict()["fc.weight"])
        with pytest.raises(CheckpointError, match="record data/3 does not match its checksum; its data is damaged"):
            checkpoint.extras  # noqa: B018


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state_dict(), tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert torch.equal(checkpoint.tensor("fc.weight"), state_dict()["fc.weight"])


@pytest.mark.parametrize("container", ["torch-zip", "safetensors"])
def test_a_file_cut_off_anywhere_is_refused(container: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    if container == "torch-zip":
        torch.save(state_dict(), path)
    else:
        save_file(state_dict(), path)
    whole = path.read_bytes()
    for kept in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def damaged(data: bytes, generator: torch.Generator) -> bytes:
    """Return the data with three random bytes at random places."""
    changed = bytearray(data)
    for _ in range(3):
        position = int(torch.randint(len(changed), (1,), generator=generator))
        changed[position] = int(torch.randint(256, (1,), generator=generator))
    return bytes(changed)


def test_random_damage_to_the_pickle_gives_our_errors_only(tmp_path: Path) -> None:
    good, path = tmp_path / "good.pt", tmp_path / "model.pt"
    torch.save({"model": state_dict(), "epoch": 3, "names": ["a", "b"]}, good)
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(60):
        rezip(good, path, lambda data: damaged(data, generator))
        try:
            with open_checkpoint(path) as checkpoint:
                for name in checkpoint.tensors:
                    checkpoint.tensor(name)
        except CheckpointError as error:
            assert error.where == str(path)  # noqa: PT017
            refused += 1

    assert refused >= 50
