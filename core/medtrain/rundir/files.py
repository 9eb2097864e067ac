"""How files are written and read: text and JSON in one move, strict JSON, checksums."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from medtrain.errors import UsageError


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def strict(value: Any) -> Any:
    """The value as strict JSON: NaN and infinities become None."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return value


def read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value
    except FileNotFoundError:
        raise UsageError(f"{path}: missing") from None
    except ValueError as error:
        raise UsageError(f"{path}: not valid JSON: {error}") from None


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(strict(value), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one move."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")  # folds that end together write one index
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
