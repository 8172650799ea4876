"""JSON files of a model, which are untrusted input: of limited size, with an object at the top."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpocompress.errors import CheckpointError
from mpocompress.text import shown, shown_size


def read_json(path: Path, *, largest: int, kind: str, action: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the file.
        largest: largest size in bytes.
        kind: kind of the file, for messages.
        action: advice if the file cannot be used.

    Raises:
        CheckpointError: it cannot be read, is larger than `largest`, is not JSON, is nested too deep, has a key twice,
            or holds no object.
    """

    def fail(found: str, why: str) -> CheckpointError:
        return CheckpointError(where=str(path), found=found, why=why, action=action)

    try:
        with path.open("rb") as stream:
            data = stream.read(largest + 1)
        if len(data) > largest:
            raise fail(f"more than {shown_size(largest)}", f"no valid {kind} is that large")
        value = json.loads(data, object_pairs_hook=_unique)
    except OSError as error:
        raise fail(f"it cannot be read ({error.strerror})", f"the {kind} is part of the model") from error
    except _DuplicateKeyError as error:
        raise fail(f"key {shown(str(error))!r} twice in one object", "the file is ambiguous") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else shown(str(error))
        raise fail(f"not usable JSON ({reason})", f"it is not the {kind} of a model") from None
    if not isinstance(value, dict):
        raise fail(f"a JSON {type(value).__name__}", f"the {kind} is a JSON object")
    return value


class _DuplicateKeyError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        raise _DuplicateKeyError(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return value
