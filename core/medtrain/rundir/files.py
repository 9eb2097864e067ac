"""How files are written and read: a file or a folder in one move, strict JSON, checksums."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medtrain.errors import UsageError


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(value: Any) -> str:
    """The checksum of a value as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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


def write_json(path: Path, value: dict[str, Any], *, sync: bool = True) -> None:
    write_text(path, json.dumps(strict(value), indent=1, allow_nan=False) + "\n", sync=sync)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Replace a text file in one move."""
    with replace_file(path, sync=sync) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def replace_file(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """The hidden name to write a file under; at the end of the block the file takes its place in one move.

    When the block fails, what was written is removed and the file that was there stays. sync: wait until the file is
    on the disk, so that it survives a power failure.
    """
    aside = _aside(path)
    try:
        yield aside
        if sync:
            sync_path(aside)
        aside.replace(path)
        if sync:
            sync_path(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, replace: bool = False, sync: bool = True) -> Iterator[Path]:
    """A hidden folder to fill; at the end of the block it gets its name in one move, or is removed when that fails.

    An empty folder of that name is replaced, a full one only when `replace` says so; else OSError. sync: wait until
    all files are on the disk.
    """
    aside = _aside(path)
    old = aside.with_suffix(".old")
    aside.mkdir(parents=True)
    try:
        yield aside
        if sync:
            for folder, _, files in os.walk(aside):
                for name in (*files, "."):
                    sync_path(Path(folder, name))
        if replace and path.exists():
            path.rename(old)
        aside.rename(path)
        if sync:
            sync_path(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def sync_path(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _aside(path: Path) -> Path:
    # A name of its own for each writer: folds that end together write one index.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
