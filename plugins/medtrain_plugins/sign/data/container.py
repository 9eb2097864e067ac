"""medtrain's own format of keypoints: one memory-mapped array of frames and a Parquet table of clips.

    frames.npy      (frames, 184, 4) float32 or float16, all clips end to end
    clips.parquet   one row per clip: sample_id, clip, sign, signer, split, offset, length, normalisation, finite
    dataset.json    format, version, where the keypoints come from and how they were made

Nothing in it is pickled. It is written aside and put in its place when complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from medtrain.errors import DataError, UsageError
from medtrain.rundir import new_folder

from medtrain_plugins.sign.data.landmarks import CHANNELS, LANDMARKS, Frames, Normalisation, normalisation_of
from medtrain_plugins.sign.data.mapped import MappedArray, describe

FORMAT, VERSION = "medtrain-karsl", 1
FRAMES, INDEX, ABOUT = "frames.npy", "clips.parquet", "dataset.json"
COLUMNS = ("sample_id", "clip", "sign", "signer", "split", "length", "normalisation", "finite")


@dataclass(frozen=True)
class Clip:
    """A clip with its sign and signer. frames: (L, 184, 4), any float type. split: `train` or `test`, as published."""

    clip: str
    sign: int
    signer: int
    split: str
    frames: Frames

    @property
    def sample_id(self) -> str:
        return sample_id(self.signer, self.split, self.sign, self.clip)

    def facts(self) -> dict[str, Any]:
        """The clip's row of an index, without the position of its frames."""
        known: Normalisation = normalisation_of(self.frames) if len(self.frames) else "unknown"
        return {
            "sample_id": self.sample_id,
            "clip": self.clip,
            "sign": self.sign,
            "signer": self.signer,
            "split": self.split,
            "length": len(self.frames),
            "normalisation": known,
            "finite": bool(np.isfinite(self.frames).all()),
        }


def sample_id(signer: int, split: str, sign: int, clip: str) -> str:
    """The name of a clip in every format: `01-train/0001/<clip>`."""
    return f"{signer:02d}-{split}/{sign:04d}/{clip}"


def write_container(
    out: Path, clips: Iterable[Clip], about: dict[str, Any], dtype: Literal["float32", "float16"] = "float32"
) -> pd.DataFrame:
    """Writes clips, one in memory at a time; returns the table of clips. Raises UsageError if `out` is not empty.

    about: further entries of dataset.json.
    """
    with writing(out) as folder:
        rows = []
        offset = 0
        with (folder / FRAMES).open("wb") as file:
            _write_header(file, 0, dtype)
            for clip in clips:
                rows.append(clip.facts() | {"offset": offset})
                offset += len(clip.frames)
                file.write(np.ascontiguousarray(clip.frames, dtype).tobytes())
            # NumPy's header has room for the first dimension to grow.
            file.seek(0)
            _write_header(file, offset, dtype)
        if not rows:
            raise DataError(f"{out}: not written, there are no clips")
        index = pd.DataFrame(rows)
        index.to_parquet(folder / INDEX, index=False)
        kinds = sorted(set(index["normalisation"]))
        facts = {"format": FORMAT, "version": VERSION, "clips": len(index), "frames": offset, "normalisation": kinds}
        text = json.dumps(facts | about, indent=1, ensure_ascii=False)
        (folder / ABOUT).write_text(text + "\n", encoding="utf-8")
    return index


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block is through, and is gone when it fails."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: already there and not empty; give another --out")
    with ExitStack() as stack:
        try:
            aside = stack.enter_context(new_folder(out))
        except OSError as error:
            raise UsageError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
        yield aside


def is_container(folder: Path) -> bool:
    """Whether a folder was written by `write_container`."""
    return (folder / ABOUT).is_file() and (folder / FRAMES).is_file()


def read_index(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of clips and dataset.json; raises DataError if they do not fit each other."""
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if about.get("format") != FORMAT or about.get("version") != VERSION:
        raise DataError(
            f"{folder / ABOUT}: format {about.get('format')!r} version {about.get('version')!r} is not "
            f"{FORMAT!r} {VERSION}; make it again with `medtrain data prepare karsl`"
        )
    if not (folder / INDEX).is_file():
        raise DataError(f"{folder / INDEX}: is missing; make it again with `medtrain data prepare karsl`")
    index = pd.read_parquet(folder / INDEX)
    shape = frames_array(folder / FRAMES).shape
    ends = index["offset"] + index["length"]
    if shape[1:] != (LANDMARKS, CHANNELS) or int(ends.max()) > shape[0] or int(index["offset"].min()) < 0:
        raise DataError(
            f"{folder / FRAMES}: holds an array of shape {shape}, {INDEX} names frames up to {int(ends.max())} of "
            f"{LANDMARKS} x {CHANNELS}; the files do not belong together"
        )
    return index, about


def frames_array(path: Path) -> MappedArray:
    """The array in frames.npy; raises DataError if it is not one."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return describe(path, array.dtype, array.shape, array.offset)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); make it again with `medtrain data prepare karsl`") from None


def _write_header(file: Any, frames: int, dtype: str) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, header | {"shape": (frames, LANDMARKS, CHANNELS)})
