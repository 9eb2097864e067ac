"""Risks of images without labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from medtrain import Run
from medtrain.data import Loader

from medtrain_plugins.mammography.cohort.cohort import read_cohort
from medtrain_plugins.mammography.cohort.dataset import ExamDataset, read_folder
from medtrain_plugins.mammography.cohort.samples import Samples
from medtrain_plugins.mammography.options import CohortOptions

COLUMNS = ("sample_id", "patient_id", "exam_id", "laterality", "view", "time_gap")


def open_source(source: Any, options: CohortOptions, samples: Samples) -> tuple[pd.DataFrame, ExamDataset]:
    """The samples of the user's source, as a table and as a dataset.

    source: a table, a folder with one, or a folder of images named as in EMBED.
    """
    path = Path(source)
    if path.is_dir() and not any(path.glob("*.csv")):
        cohort = read_folder(path)
    else:
        cohort = read_cohort(path, None, options.layout, options.columns, options.on_bad_rows)
    table = samples.make(cohort)
    return table, ExamDataset(table, samples, options.image_size, options.image_orientation, layout=cohort.layout)


def predict_risks(
    run: Run, source: Any, options: CohortOptions, samples: Samples, primary_risk: Callable[[Any], torch.Tensor]
) -> pd.DataFrame:
    """One row per sample of the model: its ids, `time_gap` if it has one, `risk_year_1` ... `risk_year_5`.

    source: see `open_source`.
    """
    table, dataset = open_source(source, options, samples)
    risks = []
    with torch.no_grad():
        for batch in Loader(dataset, run.config.data.batch_size):
            moved = {k: v.to(run.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            risks.append(primary_risk(run.model(moved)).float().cpu().numpy())
    predicted = table[[name for name in COLUMNS if name in table]].copy()
    for year, values in enumerate(np.concatenate(risks).T, 1):
        predicted[f"risk_year_{year}"] = values
    return predicted
