"""`medtrain data prepare karsl`: keypoints of any layout, or recordings, into medtrain's own container."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from medtrain.errors import DataError, first_lines

from medtrain_plugins.sign.data.container import Clip, write_container
from medtrain_plugins.sign.data.formats import Clips
from medtrain_plugins.sign.data.labels import FILE, read_labels
from medtrain_plugins.sign.data.landmarks import adjust, normalisation_of


@dataclass(frozen=True)
class Wanted:
    """Which clips to use; empty means all."""

    signs: Collection[int] = ()
    signers: Collection[int] = ()
    splits: Collection[str] = ()

    def __call__(self, sign: int, signer: int, split: str) -> bool:
        chosen = ((self.signs, sign), (self.signers, signer), (self.splits, split))
        return all(not known or value in known for known, value in chosen)


def clips_of(clips: Clips, wanted: Wanted) -> Iterator[Clip]:
    """The requested clips, read one by one."""
    table: Any = clips.index.itertuples()
    for row in table:
        if wanted(row.sign, row.signer, row.split):
            yield Clip(row.clip, row.sign, row.signer, row.split, clips.read(row.Index))


def store(
    clips: Iterator[Clip],
    about: dict[str, Any],
    out: Path,
    *,
    labels: Path | None = None,
    adjusted: bool = False,
    drop_bad: bool = False,
    dtype: Literal["float32", "float16"] = "float32",
) -> pd.DataFrame:
    """Checks clips and writes them to a container at `out`; returns its table of clips.

    about: their origin, as JSON. labels: table of the signs' names to store with them. adjusted: centre and scale raw
    clips. drop_bad: leave out clips without frames or with values that are not finite, instead of raising DataError.
    """
    if labels is not None:
        read_labels(labels)
    bad: list[str] = []

    def checked() -> Iterator[Clip]:
        for clip in clips:
            # Values too large for float16 become infinite.
            if not len(clip.frames) or not np.isfinite(clip.frames.astype(dtype)).all():
                bad.append(f"{clip.sample_id}: {'values that are not finite' if len(clip.frames) else 'no frames'}")
            elif adjusted and normalisation_of(clip.frames) == "raw":
                yield replace(clip, frames=adjust(clip.frames))
            else:
                yield clip
        if bad and not drop_bad:
            raise DataError(f"{len(bad)} clips cannot be used; repair them, or give --drop-bad\n{first_lines(bad)}")

    about = {key: value for key, value in about.items() if key == "extractor"} | {"made_from": about}
    index = write_container(out, checked(), about | {"dropped": bad}, dtype)
    if labels is not None:
        shutil.copyfile(labels, out / FILE)
    return index
