"""Changes to a synthetic cohort that end-to-end tests make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

LABELS = ["Time_to_Cancer_Years", "years_last_followup", "path_severity"]
BREAST_EXAM = ["patient_id", "ImageLateralityFinal", "study_date_anon"]


def permute_labels(cohort: Path, seed: int) -> None:
    """Deal the labels of breast exams out anew at random, within each of the folders train, val and test."""
    path = cohort / "cohort.csv"
    table = pd.read_csv(path, dtype=str)
    folder = {file.name.split("_")[0]: file.parent.name for file in cohort.glob("*/*.png")}
    table["folder"] = table["patient_id"].map(folder)
    generator = np.random.default_rng(seed)
    exams = table.drop_duplicates(BREAST_EXAM).set_index(BREAST_EXAM)[[*LABELS, "folder"]]
    for _, members in exams.groupby("folder"):
        exams.loc[members.index, LABELS] = members[LABELS].to_numpy()[generator.permutation(len(members))]
    table = table[[*BREAST_EXAM, "view", "density", "RACE_DESC"]].join(exams[LABELS], on=BREAST_EXAM)
    table.to_csv(path, index=False)


def move_to_test(cohort: Path, keep: int) -> None:
    """Make a larger cohort one of `keep` women with a larger test group: whoever is beyond that is tested on."""
    women = {
        folder.name: sorted({file.name.split("_")[0] for file in folder.glob("*.png")}) for folder in cohort.glob("*/")
    }
    share = keep / sum(map(len, women.values()))
    for name in ("train", "val"):
        for woman in women[name][round(len(women[name]) * share) :]:
            for file in (cohort / name).glob(f"{woman}_*.png"):
                file.rename(cohort / "test" / file.name)
