"""Keypoints on disk, in any of three layouts, as one table of clips and a way to read each.

    container   see `container`; written by `medtrain data prepare karsl`
    npz         .../karsl-kps/<signer>-<train|test>/<sign>.npz, an array (frames, 184, 4) per clip
    mmap        <train|test>_X.mmap, float32, all clips end to end, with _X_shape.npy, _y.npz and the pickled
                _X_map_samples_lens.npy, of which only numbers are taken

The last two are those of the published keypoints. They are looked through once: lengths, finite values, and how they
are centred; what was found is kept in medtrain's cache for as long as the files stay the same.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from medtrain.data import cache_dir
from medtrain.errors import CheckpointError, DataError, first_lines
from medtrain.rundir import replace_file
from medtrain.weights import RestrictedUnpickler, Stub

from medtrain_plugins.sign.data.container import COLUMNS, FRAMES, Clip, frames_array, is_container, read_index
from medtrain_plugins.sign.data.landmarks import CHANNELS, LANDMARKS, Frames
from medtrain_plugins.sign.data.mapped import FrameRange, MappedArray, describe, frames_at

log = logging.getLogger("medtrain")

EXTRACTED = "word-level-arabic-sign-language-extrcted-keypoints"
PREPROCESSED = "word-level-arabic-sign-language-preprcsd-keypoints"
NPZ_ROOT = "karsl-kps"
SPLITS = ("train", "test")
CACHE_BYTES = 512 * 2**20
_SCAN_VERSION = 1
# Whatever a damaged or hostile pickle may raise.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    IndexError,
    pickle.UnpicklingError,
    CheckpointError,
)


class Reader(Protocol):
    """Reads the frames of clip number `clip` of the table, (L, 184, 4) of any float type."""

    def __call__(self, clip: int) -> Frames: ...


class Clips:
    """A dataset of clips.

    index: one row per clip: sample_id, clip, sign, signer, split, length, normalisation, finite. read: clip number ->
    frames. about: where it comes from, JSON.
    """

    def __init__(self, index: pd.DataFrame, read: Reader, about: dict[str, Any]) -> None:
        self.index, self.read, self.about = index, read, about

    def __iter__(self) -> Iterator[Clip]:
        rows: Any = self.index.itertuples(index=False)
        for number, row in enumerate(rows):
            yield Clip(row.clip, row.sign, row.signer, row.split, self.read(number))


class PackedFrames:
    """Reads clips that lie end to end in mapped files. arrays: by key; keys, offsets, lengths: of each clip."""

    def __init__(self, arrays: dict[str, MappedArray], keys: list[str], offsets: Any, lengths: Any) -> None:
        self.arrays, self.keys = arrays, keys
        self.starts, self.stops = np.asarray(offsets).tolist(), (np.asarray(offsets) + np.asarray(lengths)).tolist()

    def __call__(self, clip: int) -> Frames:
        return frames_at(self.place(clip))

    def place(self, clip: int) -> FrameRange:
        """Where the clip is."""
        return FrameRange(self.arrays[self.keys[clip]], self.starts[clip], self.stops[clip])


class NpzFrames:
    """Reads clips from npz files, as float32; keeps the most recent in memory and no file open."""

    def __init__(self, paths: list[str], keys: list[str], cache_bytes: int = CACHE_BYTES) -> None:
        self.paths, self.keys, self.cache_bytes = paths, keys, cache_bytes
        self._cache: dict[int, Frames] = {}
        self._held = 0

    def __call__(self, clip: int) -> Frames:
        if clip in self._cache:
            self._cache[clip] = self._cache.pop(clip)  # the last to be forgotten
            return self._cache[clip]
        with _npz(Path(self.paths[clip])) as file:
            frames: Frames = file[self.keys[clip]].astype(np.float32)
        self._cache[clip] = frames
        self._held += frames.nbytes
        while self._held > self.cache_bytes:
            self._held -= self._cache.pop(next(iter(self._cache))).nbytes
        return frames

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}, "_held": 0}


def open_clips(folder: Path) -> Clips:
    """The clips of a folder, whatever its layout; raises DataError saying what was looked for."""
    kind, base = find_layout(folder)
    return {"container": _open_container, "npz": _open_npz, "mmap": _open_mmap}[kind](base)


def loose_clips(path: Path) -> dict[str, Frames]:
    """The clips of a single file, by name: an npz of clips, or an npy file of one; raises DataError."""
    if path.suffix == ".npz":
        with _npz(path) as file:
            clips = {key: file[key] for key in file.files}
    else:
        clips = {path.stem: _numbers(path)}
    for name, frames in clips.items():
        if frames.dtype.kind != "f" or frames.shape[1:] != (LANDMARKS, CHANNELS):
            raise DataError(f"{path}: {name!r} {_not_a_clip(frames)}")
    return clips


def find_layout(folder: Path) -> tuple[str, Path]:
    """Which layout a folder has, and the folder in it where the files are."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    found = [("container", folder)] if is_container(folder) else []
    for base in (folder, folder / NPZ_ROOT, folder / EXTRACTED / NPZ_ROOT):
        if any(_signer_and_split(path) and any(path.glob("*.npz")) for path in _folders(base)):
            found.append(("npz", base))
            break
    for base in (folder, folder / PREPROCESSED, folder / PREPROCESSED / PREPROCESSED):
        if any((base / f"{split}_X.mmap").is_file() for split in SPLITS):
            found.append(("mmap", base))
            break
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{folder}: holds keypoints in several layouts; name one of {', '.join(str(b) for _, b in found)}"
        )
    raise DataError(
        f"{folder}: no keypoints here: neither dataset.json, nor {NPZ_ROOT}/<signer>-train/<sign>.npz, nor "
        "train_X.mmap. Recordings (images, videos) become keypoints by `medtrain data prepare karsl`"
    )


def _open_container(base: Path) -> Clips:
    index, about = read_index(base)
    reader = PackedFrames(
        {FRAMES: frames_array(base / FRAMES)}, [FRAMES] * len(index), index["offset"], index["length"]
    )
    return Clips(index.drop(columns="offset"), reader, about | {"layout": "container"})


def _open_npz(base: Path) -> Clips:
    files = sorted(path for folder in _folders(base) if _signer_and_split(folder) for path in folder.glob("*.npz"))
    if odd := [str(path) for path in files if not re.fullmatch(r"\d{1,4}", path.stem)]:
        raise DataError(f"{base}: these are not named after a sign, such as 0001.npz:\n{first_lines(odd)}")
    index = _looked_through(base, files, lambda: pd.DataFrame(_npz_rows(files), columns=[*COLUMNS, "file"]))
    if index.empty:
        raise DataError(f"{base}: {len(files)} npz files without a single clip")
    reader = NpzFrames([str(base / file) for file in index["file"]], index["clip"].tolist())
    return Clips(index.drop(columns="file"), reader, {"layout": "npz"})


def _npz_rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    for path in files:
        named = _signer_and_split(path.parent)
        assert named is not None
        with _npz(path) as file:
            for key in file.files:
                frames = file[key]
                if frames.dtype.kind != "f" or frames.shape[1:] != (LANDMARKS, CHANNELS):
                    raise DataError(f"{path}: {key!r} {_not_a_clip(frames)}")
                clip = Clip(key, int(path.stem), named[0], named[1], frames)
                yield clip.facts() | {"file": f"{path.parent.name}/{path.name}"}


@contextmanager
def _npz(path: Path) -> Iterator[Any]:
    """An npz file, opened without trusting it; errors of opening and of reading from it name the file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise ValueError("not an npz file")
            yield file
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _open_mmap(base: Path) -> Clips:
    splits = [split for split in SPLITS if (base / f"{split}_X.mmap").is_file()]
    parts = [_mmap_table(base, split) for split in splits]
    table = pd.concat(parts, ignore_index=True)
    arrays = {s: describe(base / f"{s}_X.mmap", np.float32, _mmap_shape(base, s)) for s in splits}
    reader = PackedFrames(arrays, table["split"].tolist(), table["offset"], table["length"])

    def scan() -> pd.DataFrame:
        rows = zip(table["clip"], table["sign"], table["signer"], table["split"], strict=True)
        facts = [Clip(*row, reader(number)).facts() for number, row in enumerate(rows)]
        return pd.DataFrame(facts, columns=list(COLUMNS))

    files = [base / f"{split}{suffix}" for split in splits for suffix in _MMAP_FILES]
    return Clips(_looked_through(base, files, scan), reader, {"layout": "mmap"})


_MMAP_FILES = ("_X.mmap", "_X_shape.npy", "_y.npz", "_X_map_samples_lens.npy")


def _mmap_shape(base: Path, split: str) -> tuple[int, ...]:
    path = base / f"{split}_X_shape.npy"
    shape = tuple(int(number) for number in _numbers(path))
    size = (base / f"{split}_X.mmap").stat().st_size
    if len(shape) != 3 or shape[1:] != (LANDMARKS, CHANNELS) or size != 4 * int(np.prod(shape)):
        raise DataError(
            f"{path}: the shape {shape} is not (frames, {LANDMARKS}, {CHANNELS}), or {split}_X.mmap has not the size "
            f"of such an array of float32: {size} bytes"
        )
    return shape


def _mmap_table(base: Path, split: str) -> pd.DataFrame:
    """Clips of one split with their offsets; the three files must agree."""
    path = base / f"{split}_X_map_samples_lens.npy"
    lengths = read_lengths(path)
    rows = [
        {"sign": sign, "signer": signer, "clip": f"{number:04d}", "length": length}
        for sign, by_signer in lengths.items()
        for signer, clips in by_signer.items()
        for number, length in enumerate(clips)
    ]
    table = pd.DataFrame(rows, columns=["sign", "signer", "clip", "length"])
    table["split"] = split
    table["offset"] = table["length"].cumsum() - table["length"]
    total = _mmap_shape(base, split)[0]
    if table["length"].sum() != total:
        raise DataError(f"{path}: its lengths add up to {table['length'].sum()}, {split}_X.mmap has {total} frames")
    with _npz(base / f"{split}_y.npz") as file:
        labels = file[file.files[0]] if file.files else np.array([])
    if not np.array_equal(labels, table["sign"].to_numpy() - 1):
        raise DataError(
            f"{base / f'{split}_y.npz'}: its classes are not those of the {len(table)} clips in {path.name}"
        )
    return table


def read_lengths(path: Path) -> dict[int, dict[int, list[int]]]:
    """`{sign: {signer: [frames per clip]}}` from the pickled index of the mmap layout; nothing in it is executed.

    Only dicts, lists and numbers are built. Anything else a pickle may name is refused with a DataError.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            _, _, dtype = read_header(file)
            if not dtype.hasobject:
                raise DataError(f"{path}: is not an index of lengths but an array of {dtype}")
            value = _LengthsUnpickler(file).load()
        table = {int(s): {int(p): [int(n) for n in clips] for p, clips in by.items()} for s, by in value.item.items()}
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as {{sign: {{signer: [frames]}}}} ({error})") from None
    if bad := [sign for sign, by in table.items() for clips in by.values() if any(n < 0 for n in clips)]:
        raise DataError(f"{path}: negative lengths at sign {bad[0]}")
    return table


class _Array(Stub):
    """Stands for NumPy's array and dtype: keeps the one object of an array, does nothing."""

    __slots__ = ("item",)

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and isinstance(state[-1], list) and len(state[-1]) == 1:
            self.item = state[-1][0]


def _integer(dtype: Any, data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


class _LengthsUnpickler(RestrictedUnpickler):
    """Builds dicts, lists and numbers."""

    known = {  # noqa: RUF012 - read only
        "numpy.ndarray": _Array,
        "numpy.dtype": _Array,
        "numpy.core.multiarray._reconstruct": _Array,
        "numpy.core.multiarray.scalar": _integer,
        "numpy._core.multiarray._reconstruct": _Array,
        "numpy._core.multiarray.scalar": _integer,
        "collections.defaultdict": lambda *factory: {},
        "builtins.dict": dict,
        "builtins.list": list,
    }
    refusal = "no list of lengths needs"


def _looked_through(base: Path, files: list[Path], scan: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table `scan` makes, from the cache when the files are those it was made of."""
    states = [(path.relative_to(base).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(repr((_SCAN_VERSION, str(base.resolve()), states)).encode()).hexdigest()[:16]
    cached = cache_dir() / "karsl" / f"{key}.parquet"
    try:
        return pd.read_parquet(cached)
    except (OSError, ValueError):
        pass
    log.info("Looking through the keypoints in %s, once", base)
    index = scan()
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(cached, sync=False) as aside:  # a damaged one is made anew
            index.to_parquet(aside, index=False)
    except OSError as error:
        log.warning("The table of clips could not be kept in %s (%s); it is made anew next time", cached, error)
    return index


def _not_a_clip(frames: Frames) -> str:
    return (
        f"has the shape {frames.shape} and type {frames.dtype}, not (frames, {LANDMARKS}, {CHANNELS}) and a float type"
    )


def _numbers(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _folders(base: Path) -> list[Path]:
    return sorted(path for path in base.iterdir() if path.is_dir()) if base.is_dir() else []


def _signer_and_split(folder: Path) -> tuple[int, str] | None:
    match = re.fullmatch(r"(\d+)-(train|test)", folder.name)
    return (int(match[1]), match[2]) if match else None
