"""The most probable sign of each clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from medtrain import Run
from medtrain.data import Loader
from medtrain.errors import DataError
from medtrain.protocols import move_batch

from medtrain_plugins.sign.data.dataset import collate
from medtrain_plugins.sign.data.formats import loose_clips, open_clips
from medtrain_plugins.sign.data.landmarks import Frames, normalisation_of
from medtrain_plugins.sign.options import KArSLOptions


class _Unlabelled:
    """Clips without labels."""

    deterministic = True

    def __init__(self, source: Path, adjusted: bool) -> None:
        self.adjusted = adjusted
        self.read: Callable[[int], Frames]
        if source.is_dir():
            clips = open_clips(source)
            self.sample_ids, self.read = clips.index["sample_id"].tolist(), clips.read
        else:
            loose = loose_clips(source)
            self.sample_ids, self.read = list(loose), list(loose.values()).__getitem__

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        frames = self.read(index)
        found = normalisation_of(frames)
        if found not in ("unknown", "adjusted" if self.adjusted else "raw"):
            raise DataError(
                f"{self.sample_ids[index]}: the keypoints are {found}, those the model was trained on were not; "
                "prepare them alike"
            )
        unknown = dict.fromkeys(("label", "sign", "signer"), 0)
        return {"sample_id": self.sample_ids[index], "frames": frames, "adjusted": self.adjusted, **unknown}


def predict_signs(run: Run, source: Any, options: KArSLOptions) -> pd.DataFrame:
    """One row per clip: `sample_id`, the most probable `sign`, its names if the run has them, `probability`.

    source: a folder of keypoints in any layout, an npz file of clips, or an npy file of one. Raises DataError if the
    keypoints are not normalised as in training.
    """
    dataset = _Unlabelled(Path(source), options.normalisation == "adjusted")
    rows: list[Any] = []
    settings = run.config.data
    with torch.no_grad():
        loader = Loader(dataset, settings.evaluation_batch_size or settings.batch_size, collate_fn=collate)
        for batch in loader:
            logits = run.model(move_batch(batch, run.device))["logits"].float()
            probability, best = logits.softmax(dim=1).max(dim=1)
            rows += zip(batch["sample_id"], best.tolist(), probability.tolist(), strict=True)
    table = pd.DataFrame(rows, columns=["sample_id", "class", "probability"])
    signs = pd.DataFrame(_recorded_signs(run) or [{"class": c, "sign": s} for c, s in enumerate(options.sign_numbers)])
    return table.merge(signs, on="class", how="left")[["sample_id", *signs.columns.drop("class"), "probability"]]


def _recorded_signs(run: Run) -> list[dict[str, Any]]:
    if run.maps is None:
        return []
    recorded: list[dict[str, Any]] = run.maps.membership()["about"].get("signs", [])
    return recorded
