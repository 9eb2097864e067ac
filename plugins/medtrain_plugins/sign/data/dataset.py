"""Clips as samples and batches: slices of the mapped array, concatenated, not copied clip by clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from medtrain.errors import DataError, first_lines

from medtrain_plugins.sign.data.formats import Clips
from medtrain_plugins.sign.data.mapped import Elsewhere, pack


class ClipDataset:
    """Some clips of a dataset. A sample has

    `frames` (L, 184, 4) as on disk, and their `place` there if they are memory-mapped; `label`, the class; `sign`,
    `signer`; `adjusted`, whether the frames are centred and scaled; `sample_id`.

    rows: numbers of the clips. signs: the chosen signs; a sign's position is its class.
    """

    deterministic = True

    def __init__(self, clips: Clips, rows: Sequence[int], signs: Sequence[int], adjusted: bool) -> None:
        self.read, self.rows, self.adjusted = clips.read, [int(row) for row in rows], adjusted
        table = clips.index.iloc[self.rows]
        class_of = {sign: number for number, sign in enumerate(signs)}
        self.sample_ids: list[str] = table["sample_id"].tolist()
        # Signers may be in several groups, clips may not.
        self.participants = self.sample_ids
        self.signs: list[int] = table["sign"].tolist()
        self.signers: list[int] = table["signer"].tolist()
        self.classes = [class_of[sign] for sign in self.signs]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        row = self.rows[index]
        place = getattr(self.read, "place", None)
        return {
            "sample_id": self.sample_ids[index],
            "frames": self.read(row),
            "place": place and place(row),
            "label": self.classes[index],
            "sign": self.signs[index],
            "signer": self.signers[index],
            "adjusted": self.adjusted,
        }


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples as one batch:

    `frames` (sum of lengths, 736) float32, the concatenated clips; `length` and `label` (B,) int64; `sign`, `signer`,
    `adjusted`, `sample_id`, lists. Raises DataError naming clips that are empty or not finite.
    """
    clips = [sample["frames"] for sample in samples]
    lengths = [len(clip) for clip in clips]
    # The sum is not finite if any value is not, and is much cheaper than checking each value.
    if not all(lengths) or not np.isfinite([clip.sum(dtype=np.float32) for clip in clips]).all():
        _refuse(samples)
    places = [sample["place"] for sample in samples if sample.get("place")]
    travels = torch.utils.data.get_worker_info() is not None
    batch: dict[str, Any] = {
        "frames": Elsewhere(places) if travels and len(places) == len(samples) else pack(clips),
        "length": torch.tensor(lengths),
        "label": torch.tensor([sample["label"] for sample in samples]),
    }
    return batch | {key: [sample[key] for sample in samples] for key in ("sign", "signer", "adjusted", "sample_id")}


def _refuse(samples: list[dict[str, Any]]) -> None:
    problems = []
    for sample in samples:
        if not len(sample["frames"]):
            problems.append(f"{sample['sample_id']}: no frames")
        elif not (finite := np.isfinite(sample["frames"]).reshape(len(sample["frames"]), -1).all(axis=1)).all():
            problems.append(f"{sample['sample_id']}: frame {int(np.argmin(finite))} has a value that is not finite")
    if problems:
        raise DataError(f"these clips cannot be used; repair them or leave them out:\n{first_lines(problems)}")
