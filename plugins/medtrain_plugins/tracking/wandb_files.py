"""The epochs in W&B's own files of a run, also after a crash.

A `.wandb` file is W&B's transaction log: seven bytes of header, then records in LevelDB's log format (blocks of
32 KiB; a record is split over blocks, each piece with checksum, length and kind), each record a protobuf message.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAGIC = b":W&B"
BLOCK = 32768
PIECE = struct.Struct("<IHB")  # checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def logged_epochs(folder: Path, run_id: str) -> set[int]:
    """The epochs in all files of a run in `folder`, also of interrupted processes."""
    found = set()
    for path in sorted(folder.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")):
        found |= {int(row["epoch"]) for row in history(path) if "epoch" in row}
    return found


def history(path: Path) -> Iterator[dict[str, Any]]:
    """The history rows of a `.wandb` file, in order; a truncated file ends early."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of a `.wandb` file."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2

    for message in _messages(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(message)
        except DecodeError:
            return
        yield record


def _messages(data: bytes) -> Iterator[bytes]:
    if not data.startswith(MAGIC):
        return
    at, pieces = len(MAGIC) + 3, b""
    while True:
        if BLOCK - at % BLOCK < PIECE.size:  # the rest of a block is too small for a piece: it is padding
            at += BLOCK - at % BLOCK
        if at + PIECE.size > len(data):
            return
        _, length, kind = PIECE.unpack_from(data, at)
        at += PIECE.size
        if kind not in (FULL, FIRST, MIDDLE, LAST) or at + length > len(data):
            return
        pieces = (b"" if kind in (FULL, FIRST) else pieces) + data[at : at + length]
        at += length
        if kind in (FULL, LAST):
            yield pieces
