"""Recognise the form of a file by its content; the error for an unsupported form gives an alternative."""

from __future__ import annotations

import stat
import zipfile
from enum import Enum, auto
from pathlib import Path

from mpocompress.errors import CheckpointError

_HEAD_BYTES = 4096
_LARGEST_HEADER_BYTES = 100_000_000  # what safetensors itself accepts; text read as a length is far above it
_LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # a number, as every pickle protocol from 2 on writes it


class Form(Enum):
    """Forms of files that are given as checkpoints."""

    TORCH_ZIP = auto()
    SAFETENSORS = auto()
    TORCHSCRIPT = auto()
    TORCH_EXPORT = auto()
    TORCH_PACKAGE = auto()
    NUMPY_ZIP = auto()
    PLAIN_ZIP = auto()
    BROKEN_ZIP = auto()
    LEGACY_TORCH = auto()
    PICKLE = auto()
    HTML = auto()
    LFS_POINTER = auto()
    GGUF = auto()
    HDF5 = auto()
    TORCH_TAR = auto()
    PACKED = auto()
    JSON = auto()
    FOLDER = auto()
    SPECIAL = auto()
    EMPTY = auto()
    MISSING = auto()
    UNREADABLE = auto()
    UNKNOWN = auto()


_SAVE_STATE_DICT = "In the program that made the model, save its state dict: torch.save(model.state_dict(), ...)."
_CONVERT = "Convert it to safetensors or to a PyTorch state dict with the tool that wrote it."
_DOWNLOAD_AGAIN = "Download the file again and compare its size with the source."
_NOT_READ = "files of torch.save, torch.jit.save and torch.export.save, safetensors and pickles are read"
_NO_MODEL = "it holds no model"

# form -> (found, why, action)
_REFUSALS: dict[Form, tuple[str, str, str]] = {
    Form.TORCH_PACKAGE: ("a torch.package archive", _NOT_READ, _SAVE_STATE_DICT),
    Form.NUMPY_ZIP: (
        "a NumPy .npz archive",
        _NOT_READ,
        "Turn its arrays into tensors and save the dict: torch.save({name: torch.from_numpy(array), ...}, ...).",
    ),
    Form.PLAIN_ZIP: (
        "a zip archive without a PyTorch checkpoint at its top",
        _NOT_READ,
        "Unpack it and give the file inside.",
    ),
    Form.BROKEN_ZIP: (
        "the start of a zip archive without its end",
        "the file is truncated or damaged",
        _DOWNLOAD_AGAIN,
    ),
    Form.HTML: (
        "a web page",
        _NO_MODEL,
        "The download returned a page (a login, an error) instead of the file: download the file itself.",
    ),
    Form.LFS_POINTER: (
        "a git-lfs pointer",
        "the model itself was never downloaded",
        "Run `git lfs pull` in its repository.",
    ),
    Form.GGUF: ("a GGUF file", _NOT_READ, _CONVERT),
    Form.HDF5: ("an HDF5 file (Keras or similar)", _NOT_READ, _CONVERT),
    Form.TORCH_TAR: (
        "a tar archive in the format of torch.save in 2016 and 2017",
        _NOT_READ,
        "Load it with torch.load(..., weights_only=True) and save it again with torch.save.",
    ),
    Form.PACKED: ("a packed file (tar, gzip, bzip2, xz or zstd)", _NOT_READ, "Unpack it and give the file inside."),
    Form.JSON: (
        "JSON text that is not an index of shards",
        _NO_MODEL,
        "Give the file with the weights.",
    ),
    Form.FOLDER: ("a folder instead of a file", _NO_MODEL, "Give the file with the weights."),
    Form.SPECIAL: (
        "a device, pipe or socket",
        "checkpoints are mapped into memory, which needs a plain file",
        "Save it to a file first.",
    ),
    Form.EMPTY: ("an empty file", _NO_MODEL, _DOWNLOAD_AGAIN),
    Form.MISSING: ("no such file", "nothing can be read", "Check the path."),
    Form.UNREADABLE: (
        "the file cannot be opened",
        "this user has no permission to read it",
        "Change its permissions.",
    ),
    Form.UNKNOWN: ("a file of unknown form", _NOT_READ, _SAVE_STATE_DICT),
}

_TORCH_TAR_FIRST = (b"sys_info", b"pickle", b"storages", b"tensors")

_STARTS: tuple[tuple[bytes, Form], ...] = (
    # The oldest pickles have no magic number: these are the first instructions of a dict, a list and an object.
    *(
        (start, Form.PICKLE)
        for start in (b"(dp", b"(lp", b"}q\0", b"]q\0", b"ccollections\nOrderedDict\n", b"ccopy_reg\n")
    ),
    (b"GGUF", Form.GGUF),
    (b"\x89HDF\r\n\x1a\n", Form.HDF5),
    (b"version https://git-lfs.github.com/spec/", Form.LFS_POINTER),
    (b"\x1f\x8b", Form.PACKED),
    (b"BZh", Form.PACKED),
    (b"\xfd7zXZ\x00", Form.PACKED),
    (b"\x28\xb5\x2f\xfd", Form.PACKED),
)


def sniff(path: Path) -> Form:
    """Return the form of a file, from its content and never from its name.

    Args:
        path: any path, existing or not.

    Example:
        >>> import tempfile
        >>> sniff(Path(tempfile.gettempdir())).name
        'FOLDER'
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return Form.FOLDER
        if not stat.S_ISREG(status.st_mode):
            return Form.SPECIAL
        if status.st_size == 0:
            return Form.EMPTY
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return Form.MISSING
    except OSError:
        return Form.UNREADABLE
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _sniff_zip(path)
    return _sniff_head(head)


def refusal(path: Path, form: Form) -> CheckpointError:
    """Return the error for a file of a form that is not read: its form, the reason, and what to do.

    Args:
        path: the file.
        form: result of `sniff`.

    Example:
        >>> print(refusal(Path("page.pt"), Form.EMPTY))
        page.pt: an empty file; it holds no model. Download the file again and compare its size with the source.
    """
    found, why, action = _REFUSALS[form]
    return CheckpointError(where=str(path), found=found, why=why, action=action)


def _sniff_head(head: bytes) -> Form:
    for start, form in _STARTS:
        if head.startswith(start):
            return form
    if head[257:262] == b"ustar":
        return Form.TORCH_TAR if head.partition(b"\0")[0] in _TORCH_TAR_FIRST else Form.PACKED
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER_BYTES:
        return Form.SAFETENSORS
    if head[:1] == b"\x80" and 2 <= head[1] <= 5:
        return Form.LEGACY_TORCH if _LEGACY_MAGIC in head[:32] else Form.PICKLE
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return Form.HTML
    if text.startswith((b"{", b"[")):
        return Form.JSON
    return Form.UNKNOWN


def _sniff_zip(path: Path) -> Form:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return Form.BROKEN_ZIP
    if not names:
        return Form.PLAIN_ZIP
    prefix = names[0].partition("/")[0] + "/"
    inside = {name.removeprefix(prefix) for name in names}
    for mark, form in (
        ("constants.pkl", Form.TORCHSCRIPT),
        ("archive_format", Form.TORCH_EXPORT),
        (".data/extern_modules", Form.TORCH_PACKAGE),
        ("data.pkl", Form.TORCH_ZIP),
    ):
        if mark in inside:
            return form
    return Form.NUMPY_ZIP if all(name.endswith(".npy") for name in names) else Form.PLAIN_ZIP
