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
    """Which clips to take; empty means all."""

    signs: Collection[int] = ()
    signers: Collection[int] = ()
    splits: Collection[str] = ()

    def __call__(self, sign: int, signer: int, split: str) -> bool:
        chosen = ((self.signs, sign), (self.signers, signer), (self.splits, split))
        return all(not known or value in known for known, value in chosen)


def clips_of(clips: Clips, wanted: Wanted) -> Iterator[Clip]:
    """The wanted clips, read one by one."""
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
    """Write clips to a container at `out`, checked; returns its table of clips.

    about: JSON facts on where they come from. labels: table of the signs' names to go with them. adjusted: centre and
    scale clips that are raw. drop_bad: leave out clips without frames and those with values that are not finite, which
    are a DataError otherwise.
    """
    if labels is not None:
        read_labels(labels)
    bad: list[str] = []

    def checked() -> Iterator[Clip]:
        for clip in clips:
            # Too large for float16 is as bad as infinite.
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
