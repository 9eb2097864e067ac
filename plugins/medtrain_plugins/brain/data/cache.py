"""Caches of read and transformed images for the next epoch: in memory, shared by loader processes, or on disk.

Arrays keep the type they were read in, so 16-bit images take half the memory of the network's input.

On disk, a cache is a folder with `index.json`, which names the file with all arrays, one after the other, and gives for
each its position and its source (path, size, time, SHA-256). The index is written last and in one step, so a cache is
complete or does not exist. Sources that changed are read again when the cache is opened.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import mmap
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from medtrain.errors import ConfigError, DataError
from medtrain.rundir import replace_file, write_json

Array = npt.NDArray[Any]

log = logging.getLogger("medtrain")

FORMAT, VERSION = "medtrain-brain-cache", 1
INDEX, LOCK = "index.json", "lock"
_ALIGNMENT = 64


class Kind(NamedTuple):
    """Shape and type of an array."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def offsets_of(kinds: Sequence[Kind]) -> tuple[list[int], int]:
    """The offsets of arrays that lie one after the other, and the end of the last."""
    offsets, end = [], 0
    for kind in kinds:
        offsets.append(end)
        end += -(-kind.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


class MemoryCache:
    """Arrays by number, in memory shared with forked processes: an array read by one is there for all.

    kinds: the expected shape and type of each array. An array of another kind is kept only by the process that read it.
    A spawned process starts with an empty cache. Raises ConfigError if the arrays do not fit.
    """

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self.kinds = list(kinds)
        self._offsets, size = offsets_of(self.kinds)
        if size > (memory := _physical_memory()):
            raise ConfigError(
                f"cache: the images take {size / 2**30:.1f} GiB, this machine has {memory / 2**30:.1f} GiB of memory; "
                "use the cache on disk"
            )
        # Anonymous memory, so that no limit of /dev/shm applies; a page takes memory once it is written.
        self._memory = mmap.mmap(-1, max(size, 1))
        self._filled = np.frombuffer(mmap.mmap(-1, max(len(self.kinds), 1)), np.uint8)
        self._own: dict[int, Array] = {}

    def __reduce__(self) -> Any:
        return MemoryCache, (self.kinds,)

    def get(self, number: int) -> Array | None:
        """The array, read-only, or None if no process has read it yet."""
        if not self._filled[number]:
            return self._own.get(number)
        kind = self.kinds[number]
        array: Array = np.ndarray(kind.shape, kind.dtype, self._memory, self._offsets[number])
        array.flags.writeable = False
        return array

    def put(self, number: int, array: Array) -> None:
        """Keeps a copy. Two processes may do so at once: they write the same values."""
        kind = self.kinds[number]
        if Kind(array.shape, array.dtype.str) != kind:
            self._own[number] = array.copy()
            return
        np.ndarray(kind.shape, kind.dtype, self._memory, self._offsets[number])[...] = array
        self._filled[number] = 1


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Source(NamedTuple):
    """The files an array is made from (an image, or an image and its mask), and what the array is called."""

    name: str
    files: tuple[str, ...]


class DiskCache:
    """Arrays by number in one memory-mapped file, made by `open_cache`."""

    def __init__(self, path: str | Path, kinds: Sequence[Kind], offsets: Sequence[int]) -> None:
        self.path, self.kinds, self.offsets = str(path), list(kinds), list(offsets)
        try:
            self._mapped = np.memmap(path, np.uint8, "r").view(np.ndarray)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: the cached images cannot be opened ({error}); start again") from None

    def __reduce__(self) -> Any:
        return DiskCache, (self.path, self.kinds, self.offsets)

    def get(self, number: int) -> Array | None:
        """The array, read-only."""
        kind = self.kinds[number]
        array: Array = np.ndarray(kind.shape, kind.dtype, self._mapped.data, self.offsets[number])
        return array


def open_cache(
    folder: str | Path, sources: Sequence[Source], settings: dict[str, Any], make: Callable[[int], Array]
) -> DiskCache:
    """The cache in `folder` for these sources, which is made or updated first.

    settings: everything else that arrays depend on (transforms, orientation); with changed settings the cache is made
    again. make: the array of a source by its number. Processes that open the same folder wait for each other. Raises
    DataError for a folder with other content.
    """
    folder = Path(folder)
    _refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK):
        old = _read_index(folder, settings)
        reused = {entry["name"]: entry for entry in old["entries"]} if old else {}
        kept = {s.name: reused[s.name] for s in sources if s.name in reused and _is_current(reused[s.name], s)}
        if old is None or len(kept) < len(sources):
            # Arrays of other sources stay: a run on a part of the images must not remove those of other runs.
            others = {name: entry for name, entry in reused.items() if name not in {s.name for s in sources}}
            old = _write(folder, sources, settings, make, old, kept, list(others.values()))
            kept = {entry["name"]: entry for entry in old["entries"]}
        return _mapped_entries(folder, old, [kept[source.name] for source in sources])


def _write(
    folder: Path,
    sources: Sequence[Source],
    settings: dict[str, Any],
    make: Callable[[int], Array],
    old: dict[str, Any] | None,
    kept: dict[str, Any],
    others: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Write arrays and index anew, copying what is kept from the old file; returns the index."""
    log.info("Caching %d images (%d unchanged) in %s", len(sources), len(kept), folder)
    copied = [kept.get(source.name) for source in sources] + list(others)
    before = _mapped_entries(folder, old, [entry for entry in copied if entry]) if old else None
    entries: list[dict[str, Any]] = []
    end = unchanged = 0
    data = f"images-{secrets.token_hex(8)}.bin"
    with replace_file(folder / data) as aside, aside.open("wb") as file:
        for number, entry in enumerate(copied):
            if entry is not None and before is not None:
                array: Any = before.get(unchanged)
                name, origin = entry["name"], entry["sources"]
                unchanged += 1
            else:
                # Size and time are taken before reading: a change during reading is detected the next time.
                name, origin = sources[number].name, [_fingerprint(path) for path in sources[number].files]
                array = np.ascontiguousarray(make(number))
            file.write(b"\0" * (end - file.tell()))
            file.write(array.data if array.size else b"")
            shape, dtype = list(array.shape), array.dtype.str
            entries.append({"name": name, "offset": end, "shape": shape, "dtype": dtype, "sources": origin})
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        file.truncate(max(end, 1))
    index: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "settings": settings,
        "data": data,
        "bytes": max(end, 1),
        "entries": entries,
    }
    write_json(folder / INDEX, index)
    # Processes with the old file open keep it.
    for other in folder.glob("images-*.bin"):
        if other.name != data:
            other.unlink(missing_ok=True)
    return index


def _mapped_entries(folder: Path, index: dict[str, Any], entries: Sequence[dict[str, Any]]) -> DiskCache:
    return DiskCache(
        folder / index["data"],
        [Kind(tuple(entry["shape"]), entry["dtype"]) for entry in entries],
        [entry["offset"] for entry in entries],
    )


def _read_index(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The index, if it has this version and these settings and its data are complete; else None."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        usable = (
            index["format"] == FORMAT
            and index["version"] == VERSION
            and index["settings"] == json.loads(json.dumps(settings))
            and (folder / index["data"]).stat().st_size == index["bytes"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if usable else None


def _is_current(entry: dict[str, Any], source: Source) -> bool:
    """Whether the array was made from these files: by size and time, else by content."""
    if [known["path"] for known in entry["sources"]] != list(source.files):
        return False
    for known in entry["sources"]:
        try:
            status = Path(known["path"]).stat()
        except OSError:
            return False
        if status.st_size != known["size"]:
            return False
        if status.st_mtime_ns != known["mtime_ns"] and _sha256(known["path"]) != known["sha256"]:
            return False
    return True


def _fingerprint(path: str) -> dict[str, Any]:
    try:
        status = Path(path).stat()
        return {"path": path, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": _sha256(path)}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Locks a file; other processes wait for it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: a file is in the way; name another folder for the cache")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    strange = sorted(
        name for name in found if name not in (INDEX, LOCK) and not name.lstrip(".").startswith(("images-", INDEX))
    )
    if strange:
        raise DataError(f"{folder}: not a cache of images ({strange[0]} is in it); name another folder")
