"""Risks for images that come without labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from medtrain import Run
from medtrain.data import Loader

from .cohort import read_cohort
from .dataset import PairDataset, read_folder
from .exams import lmv_pairs
from .options import CohortOptions


def predict_pairs(
    run: Run, source: Any, options: CohortOptions, primary_risk: Callable[[Any], torch.Tensor]
) -> pd.DataFrame:
    """One row per breast and exam: ids, `time_gap` and `risk_year_1` ... `risk_year_5`.

    source: a table, a folder with one, or a folder of images named as in EMBED.
    """
    path = Path(source)
    if path.is_dir() and not any(path.glob("*.csv")):
        pairs = read_folder(path)
    else:
        pairs = lmv_pairs(read_cohort(path, None, options.layout, options.columns, options.on_bad_rows))
    loader = Loader(PairDataset(pairs, options.image_size, options.image_orientation), run.config.data.batch_size)
    risks = []
    with torch.no_grad():
        for batch in loader:
            moved = {k: v.to(run.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            risks.append(primary_risk(run.model(moved)).float().cpu().numpy())
    columns = [name for name in ("sample_id", "patient_id", "exam_id", "laterality", "time_gap") if name in pairs]
    table = pairs[columns].copy()
    for year, values in enumerate(np.concatenate(risks).T, 1):
        table[f"risk_year_{year}"] = values
    return table
