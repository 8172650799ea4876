"""JSON files from outside: of bounded size, without surprises, an object at the top."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpocompress.errors import CheckpointError
from mpocompress.text import shown, shown_size


def read_json(path: Path, *, largest: int, what: str, action: str) -> dict[str, Any]:
    """Read the JSON object in a file.

    Args:
        path: the file.
        largest: the most bytes it may have.
        what: what the file is, for messages.
        action: what to do when it cannot be used.

    Returns:
        The object.

    Raises:
        CheckpointError: it cannot be read, is larger than that, is no JSON, is nested too deep, names a key twice, or
            is no object.
    """

    def fail(found: str, why: str) -> CheckpointError:
        return CheckpointError(where=str(path), found=found, why=why, action=action)

    try:
        with path.open("rb") as stream:
            data = stream.read(largest + 1)
        if len(data) > largest:
            raise fail(f"more than {shown_size(largest)}", f"no {what} is that large")
        value = json.loads(data, object_pairs_hook=_unique)
    except OSError as error:
        raise fail(f"it cannot be read ({error.strerror})", f"the {what} belongs to the model") from error
    except _TwiceError as error:
        raise fail(f"key {shown(str(error))!r} twice in one object", "it cannot be told which one counts") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else shown(str(error))
        raise fail(f"no usable JSON ({reason})", f"it is not the {what} of a model") from None
    if not isinstance(value, dict):
        raise fail(f"a JSON {type(value).__name__}", f"the {what} is a JSON object")
    return value


class _TwiceError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return found
