from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mpocompress.checkpoint.output import container_for
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.writing.atomic import replacing_folder
from mpocompress.checkpoint.writing.deterministic import Canonicaliser
from mpocompress.checkpoint.writing.writer import check_output, left_out, write_checkpoint
from mpocompress.errors import FormatError, OutputError, OutputExistsError
from tests.checkpoint.files import state_dict

CONTAINERS = ["torch-zip", "safetensors"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """Arguments of `write_checkpoint`, most of them with a default."""

    tensors: dict[str, torch.Tensor] = dataclasses.field(default_factory=state_dict)
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    container: str = "torch-zip"
    key: str = ""
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    document: str | None = None
    overwrite: bool = False
    inputs: tuple[Path, ...] = ()

    def write(self, path: Path) -> int:
        return write_checkpoint(path, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def test_the_container_follows_the_extension() -> None:
    assert container_for("a.SafeTensors") == "safetensors"
    assert [container_for(name) for name in ("a.pt", "a.pth", "a.ckpt", "a", "safetensors")] == ["torch-zip"] * 5


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("document", [None, '{"version": 1}'])
def test_equal_values_give_equal_bytes(container: str, document: str | None, tmp_path: Path) -> None:
    def job(headers: str) -> _Job:  # every string and tensor made anew
        text = json.loads('["fc.weight", "note", "state_dict", "cpu"]')
        return _Job(
            tensors={text[0]: torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2)},
            aliases={"tied.weight": text[0]},
            container=container,
            key="model",
            extras={text[1]: [text[0], "fc.bias", text[2], text[3]], "kept": torch.ones(3)},
            metadata=dict.fromkeys(headers, "x"),
            document=document,
        )

    size_bytes = job("gfedcba").write(tmp_path / "a.bin")
    job("abcdefg").write(tmp_path / "some-other-name.bin")
    assert (tmp_path / "a.bin").stat().st_size == size_bytes
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "some-other-name.bin").read_bytes()


def test_strings_are_shared_by_value_not_by_origin() -> None:
    interned, computed = "weight", "weights"[:-1]
    assert interned is not computed
    first, second = Canonicaliser().copy([interned, computed])
    assert first is second
    assert first is not interned


@pytest.mark.parametrize("container", CONTAINERS)
def test_views_do_not_drag_their_storage_along(container: str, tmp_path: Path) -> None:
    large = torch.arange(10**6, dtype=torch.float32).reshape(1000, 1000)
    views = {"row": large[3], "column": large[:, 5], "corner": large[:2, :2], "turned": large[:3, :2].T}
    views["turned whole"] = torch.arange(6.0).reshape(2, 3).T
    size_bytes = _Job(tensors=views, container=container, extras={"kept": large[7, :2]}).write(tmp_path / "out")
    assert size_bytes < 12_000
    with open_checkpoint(tmp_path / "out") as checkpoint:
        for name, view in views.items():
            assert torch.equal(checkpoint.tensor(name), view)
            assert checkpoint.tensor(name).is_contiguous()


def test_tied_tensors_are_written_once_to_a_torch_file(tmp_path: Path) -> None:
    tensors = {"embed.weight": torch.randn(100, 50)}
    job = _Job(tensors=tensors, aliases={"decoder.weight": "embed.weight"})
    assert job.write(tmp_path / "tied.pt") < 1.2 * 100 * 50 * 4
    with open_checkpoint(tmp_path / "tied.pt") as checkpoint:
        assert checkpoint.tensors["embed.weight"].alias_of is None
        assert checkpoint.tensors["decoder.weight"].alias_of == "embed.weight"
        assert torch.equal(checkpoint.tensor("decoder.weight"), tensors["embed.weight"])
    back = torch.load(tmp_path / "tied.pt", weights_only=True)
    assert back["embed.weight"].data_ptr() == back["decoder.weight"].data_ptr()


def test_tied_tensors_are_recorded_in_a_compressed_safetensors_file_and_copied_in_a_dense_one(tmp_path: Path) -> None:
    tensors = {"embed.weight": torch.randn(10, 5)}
    job = _Job(tensors=tensors, aliases={"decoder.weight": "embed.weight"}, container="safetensors", document="{}")
    job.write(tmp_path / "small")
    assert list(load_file(tmp_path / "small")) == ["embed.weight"]
    with open_checkpoint(tmp_path / "small") as checkpoint:
        assert list(checkpoint.tensors) == ["embed.weight", "decoder.weight"]
        assert checkpoint.tensors["decoder.weight"].alias_of == "embed.weight"
        assert torch.equal(checkpoint.tensor("decoder.weight"), tensors["embed.weight"])
        assert checkpoint.metadata == {"format": "pt"}
    dataclasses.replace(job, document=None).write(tmp_path / "dense")
    assert set(load_file(tmp_path / "dense")) == {"embed.weight", "decoder.weight"}


def test_views_that_overlap_without_being_equal_are_tensors_of_their_own(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": base, "b": base[:2], "c": base.T, "d": base, "e": base[:0]}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert {name: info.alias_of for name, info in checkpoint.tensors.items()} == {
            **dict.fromkeys("abce"),
            "d": "a",
        }


def test_the_layout_of_a_compressed_torch_file_is_the_documented_one(tmp_path: Path) -> None:
    extras = {"epoch": 3, "model": {"_extra_state": None}}
    _Job(extras=extras, key="model", document='{"version": 1}').write(tmp_path / "small.pt")
    raw = torch.load(tmp_path / "small.pt", weights_only=True)
    assert list(raw) == ["mpocompress", "state_dict", "extras"]
    assert raw["mpocompress"] == '{"version": 1}'
    assert list(raw["state_dict"]) == list(state_dict())
    with open_checkpoint(tmp_path / "small.pt") as checkpoint:
        assert (checkpoint.key, checkpoint.document, checkpoint.extras) == ("state_dict", '{"version": 1}', extras)


def test_a_document_beyond_64_mib_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"a document of 67\.1 MB, above 67\.1 MB"):
        _Job(document="é" * (2**25 + 1)).write(tmp_path / "small.pt")
    assert list(tmp_path.iterdir()) == []


def test_what_a_container_cannot_keep_is_named() -> None:
    extras = {"epoch": 3, "model": {}, "run": {"deep": {"best": None}}, "none": None}
    metadata = {"format": "pt", "licence": "MIT"}
    assert left_out("safetensors", extras=extras, metadata=metadata) == ("epoch", "run", "none")
    assert left_out("torch-zip", extras=extras, metadata=metadata) == ("licence",)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (_Job(aliases={"a": "gone"}), "alias a of gone does not fit the tensors"),
        (_Job(aliases={"fc.bias": "steps"}), "alias fc.bias of steps does not fit the tensors"),
        (_Job(metadata={"mpocompress": "{}"}), "a header entry 'mpocompress'; it is reserved"),
        (
            _Job(container="safetensors", tensors={"c": torch.ones(2, dtype=torch.complex128)}),
            r"c is of type complex128; safetensors cannot hold",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(job: _Job, message: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=message):
        job.write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "out.pt"
    path.write_text("old")
    with pytest.raises(
        OutputExistsError, match=r"out\.pt: the file exists; an existing file is replaced only on request"
    ):
        _Job().write(path)
    assert path.read_text() == "old"
    _Job(overwrite=True).write(path)
    assert set(torch.load(path, weights_only=True)) == set(state_dict())


@pytest.mark.parametrize("link", ["itself", "symbolic", "hard"])
def test_an_output_that_is_an_input_is_refused_even_when_overwriting(link: str, tmp_path: Path) -> None:
    source, output = tmp_path / "model.pt", tmp_path / "out.pt"
    torch.save(state_dict(), source)
    before = source.read_bytes()
    if link == "symbolic":
        output.symlink_to(source)
    elif link == "hard":
        output.hardlink_to(source)
    else:
        output = tmp_path / "." / "model.pt"
    with pytest.raises(OutputError, match="the output is a file being read, by the same name or by a link"):
        _Job(overwrite=True, inputs=(source,)).write(output)
    assert source.read_bytes() == before


def test_places_that_take_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="a folder; the output is one file"):
        check_output(tmp_path, overwrite=True, inputs=[])
    with pytest.raises(OutputError, match=r"no folder .*gone; the file has no folder"):
        check_output(tmp_path / "gone" / "out.pt", overwrite=True, inputs=[])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="a device, pipe or socket; it would be replaced by a file"):
        check_output(tmp_path / "pipe", overwrite=True, inputs=[])
    check_output(tmp_path / "out.pt", overwrite=False, inputs=[tmp_path / "gone.pt"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="is not writable"):
        check_output(tmp_path / "out.pt", overwrite=False, inputs=[])


@pytest.mark.parametrize("name", ["\u6f22" * 80 + ".pt", "a" * 252 + ".pt", "\u00e9" * 127])
def test_an_output_may_have_the_longest_name_there_is(name: str, tmp_path: Path) -> None:
    _Job().write(tmp_path / name)
    with replacing_folder(tmp_path / f"{name[:-1]}_") as folder:
        (folder / "a").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{name[:-1]}_"])


def test_a_link_to_an_output_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target.pt").write_text("old")
    (tmp_path / "link.pt").symlink_to(tmp_path / "target.pt")
    _Job(overwrite=True).write(tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink()
    assert set(torch.load(tmp_path / "target.pt", weights_only=True)) == set(state_dict())


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(
    container: str, error: BaseException, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    real_open = Path.open

    class Failing:
        """A stream that gives up after some writes."""

        def __init__(self, stream: Any) -> None:
            self.stream, self.left = stream, after

        def write(self, data: bytes) -> int:
            self.left -= 1
            if self.left < 0:
                raise error
            written: int = self.stream.write(data)
            return written

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

        def __enter__(self) -> Failing:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

    def failing_open(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        stream = real_open(self, mode, *rest, **named)
        return Failing(stream) if mode == "xb" else stream

    monkeypatch.setattr(Path, "open", failing_open)
    with pytest.raises((OutputError, KeyboardInterrupt)) as caught:
        _Job(container=container, overwrite=True).write(path)
    assert caught.type is (OutputError if isinstance(error, OSError) else KeyboardInterrupt)
    if isinstance(caught.value, OutputError):
        assert "writing failed (No space left on device)" in caught.value.found
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert path.read_text() == "old"


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(OutputError, match=r"about 1\.\d MB are needed and 5 bytes are free; the disk would be full"):
        _Job().write(tmp_path / "out.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
@pytest.mark.parametrize("container", CONTAINERS)
def test_permissions_are_those_of_a_new_file(container: str, mask: int, mode: int, tmp_path: Path) -> None:
    with _umask(mask):
        _Job(container=container).write(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == mode


def test_a_parameter_is_written_as_a_tensor_without_gradient(tmp_path: Path) -> None:
    _Job(tensors={"w": torch.nn.Parameter(torch.ones(2, 2))}).write(tmp_path / "out.pt")
    back = torch.load(tmp_path / "out.pt", weights_only=True)["w"]
    assert type(back) is torch.Tensor
    assert not back.requires_grad
