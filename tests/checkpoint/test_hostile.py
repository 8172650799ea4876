"""Files made to mislead, crash or take over; every one is refused in words and nothing in it runs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mpocompress.checkpoint import open_checkpoint, write_checkpoint
from mpocompress.errors import CheckpointError, FormatError
from tests.checkpoint.files import flip_byte, rezip, state_dict


class _Runs:
    """A value whose pickle calls a function when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [exec, eval])
def test_nothing_in_a_pickle_is_run(function: Callable[..., Any], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save(
        {"w": torch.ones(2, 2), "x": _Runs(function, f"open({str(canary)!r}, 'w').close()")}, tmp_path / "model.pt"
    )
    with pytest.raises(CheckpointError, match=rf"asks to call builtins\.{function.__name__}; no model needs that"):
        open_checkpoint(tmp_path / "model.pt")
    assert not canary.exists()
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert canary.exists()  # the canary does sing when it is let


def test_a_pickle_that_calls_the_system_is_called_harmful(tmp_path: Path) -> None:
    torch.save({"x": _Runs(os.system, "true")}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"asks to call posix\.system; no model needs that"):
        open_checkpoint(tmp_path / "model.pt")


def _cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {"w": torch.ones(2, 2)}
    value["list"] = [value]
    return value


def _nested(levels: int) -> object:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return {"w": torch.ones(2, 2), "x": value}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"w": torch.zeros(1).expand(10**6, 10**6)},
            r"shape \(1000000, 1000000\) claims 4\.0 TB and the file holds 4 bytes",
        ),
        (
            {"w": torch.ones(2, 2), "ema": [torch.zeros(1).expand(10**6, 2)]},
            r"claims 8\.0 MB and the file holds 4 bytes",
        ),
        ({"w": torch.ones(2, 2), "m": torch.ones(2, 2, device="meta")}, r"m is a tensor without data"),
        (_cyclic(), "a value that contains itself"),
        (_nested(150), "values nested more than 100 deep"),
    ],
)
def test_what_no_checkpoint_is_built_like_is_refused(value: object, message: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "model.pt")


def test_a_small_repeated_tensor_is_a_tensor(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 2), "mask": torch.zeros(1).expand(100, 100)}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert torch.equal(checkpoint.tensor("mask"), torch.zeros(100, 100))


def test_nesting_far_beyond_the_recursion_limit_is_refused(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "good.pt")
    deep = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    rezip(tmp_path / "good.pt", tmp_path / "model.pt", lambda _: deep)
    with pytest.raises(CheckpointError, match="values nested more than 100 deep"):
        open_checkpoint(tmp_path / "model.pt")


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


def test_a_storage_that_claims_more_than_its_record_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(4, 4), "v": torch.ones(9)}, tmp_path / "good.pt")
    old = b"cpuq\x06K\x10"  # a storage on the CPU of 16 elements

    def claim_more(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, b"cpuq\x06K\x14")

    rezip(tmp_path / "good.pt", tmp_path / "model.pt", claim_more)
    with pytest.raises(CheckpointError, match=r"a tensor claims 80 bytes and its record data/0 has 64 bytes"):
        open_checkpoint(tmp_path / "model.pt")


def test_records_that_no_tensor_uses_do_no_harm(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "good.pt")
    rezip(tmp_path / "good.pt", tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt", "a") as archive:
        archive.writestr("good/data/unused", b"x" * 5000)
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        for name, tensor in state_dict().items():
            assert torch.equal(checkpoint.tensor(name), tensor)


def test_deflated_records_are_refused(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "good.pt")
    rezip(tmp_path / "good.pt", tmp_path / "model.pt", deflate=True)
    with pytest.raises(CheckpointError, match=r"is compressed or encrypted; .* save it again with torch\.save"):
        open_checkpoint(tmp_path / "model.pt")


def test_a_record_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "good.pt")
    rezip(tmp_path / "good.pt", tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("good/data/0", b"\0" * 96)
    with pytest.raises(CheckpointError, match="record data/0 is there twice"):
        open_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("record", ["data.pkl", "byteorder"])
def test_a_flipped_byte_in_the_description_is_found_on_opening(record: str, tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "model.pt")
    flip_byte(tmp_path / "model.pt", record)
    with pytest.raises(CheckpointError, match=f"record {record} does not match its checksum"):
        open_checkpoint(tmp_path / "model.pt")


def test_a_flipped_byte_in_a_tensor_is_found_when_it_is_read(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "model.pt")
    flip_byte(tmp_path / "model.pt", "data/0")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert torch.equal(checkpoint.tensor("fc.bias"), state_dict()["fc.bias"])
        for _ in range(2):  # and again
            with pytest.raises(CheckpointError, match="record data/0 does not match its checksum; its data is damaged"):
                checkpoint.tensor("fc.weight")


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


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_to_the_pickle_gives_our_errors_only(seed: int, tmp_path: Path) -> None:
    torch.save({"model": state_dict(), "epoch": 3, "names": ["a", "b"]}, tmp_path / "good.pt")
    generator = torch.Generator().manual_seed(seed)

    def damage(data: bytes) -> bytes:
        raw = bytearray(data)
        for _ in range(3):
            position = int(torch.randint(len(raw), (1,), generator=generator))
            raw[position] = int(torch.randint(256, (1,), generator=generator))
        return bytes(raw)

    rezip(tmp_path / "good.pt", tmp_path / "model.pt", damage)
    try:
        with open_checkpoint(tmp_path / "model.pt") as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.tensor(name)
    except CheckpointError as error:
        assert error.where == str(tmp_path / "model.pt")  # noqa: PT017


def test_hostile_names_are_shown_escaped(tmp_path: Path) -> None:
    name = "../\x1b[31m\n" + "x" * 500
    torch.save({name: state_dict(), "other": state_dict()}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "model.pt")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"mpocompress": "{}", "state_dict": 3}, "'state_dict' or 'extras' is no dict"),
        ({"mpocompress": "{}", "state_dict": {}, "extras": 3}, "'state_dict' or 'extras' is no dict"),
        ({"mpocompress": "{}", "state_dict": {"a\n": 3}}, r"entry a\\n of 'state_dict' is no ordinary tensor"),
    ],
)
def test_our_own_format_is_checked(value: object, message: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "model.pt")
    with pytest.raises(FormatError, match=message):
        open_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "aliases", ["[", "[]", "[" * 100_000, '{"a": "gone"}', '{"fc.bias": "steps"}', '{"a": ["steps"]}']
)
def test_our_own_aliases_are_checked(aliases: str, tmp_path: Path) -> None:
    save_file(state_dict(), tmp_path / "m", {"mpocompress": "{}", "mpocompress.aliases": aliases})
    with pytest.raises(FormatError, match=r"is no JSON object|does not fit the tensors"):
        open_checkpoint(tmp_path / "m")
