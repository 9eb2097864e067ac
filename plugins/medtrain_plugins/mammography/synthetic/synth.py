"""A synthetic cohort in the EMBED layout: women with two to four exams, some of whom develop cancer.

Cases are drawn independently: dates, density, race, number of exams, follow-up, texture and exposure have the same
distribution for all women. The only sign of a later cancer is the signal, in both views, so a model can learn the risk
from the images alone:

- `growth`: a mass in the affected breast, which grows from exam to exam. A single exam shows it. - `change`: every
  breast has a mass or not, with equal probability. In an affected breast, the mass appears or disappears from each exam
  to the next; in all others nothing changes. Only a comparison of exams shows it, with certainty. - `none`: no masses,
  no sign.

Labels are per breast, as in EMBED (whole elapsed years): the affected breast has its years to cancer; the woman's other
breast, and both breasts of all other women, are censored at diagnosis or last contact.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from medtrain.errors import UsageError
from medtrain.rundir import new_folder
from PIL import Image as PillowImage

from medtrain_plugins.mammography.cohort.layouts import RACES
from medtrain_plugins.mammography.synthetic.phantom import Exposure, Mass, Shape, Tissue, breast

COLUMNS = (
    "patient_id",
    "ImageLateralityFinal",
    "view",
    "study_date_anon",
    "Time_to_Cancer_Years",
    "years_last_followup",
    "density",
    "path_severity",
    "RACE_DESC",
)
MASS_COLUMNS = ("file_name", "row", "column", "radius", "years_to_diagnosis")
TABLE, MASSES, SETTINGS = "cohort.csv", "masses.tsv", "synthesis.json"
FOLDERS = ("train", "val", "test")
# Half, a fifth and three tenths of the women, cases and controls each, in this order.
_DEAL = ("train", "val", "test", "train", "test", "train", "test", "train", "val", "train")
DAYS_PER_YEAR = 365.25
MAX_YEARS = 5.0  # from the last exam to diagnosis or last contact
MIN_PATIENTS = 3  # one per group

Signal = Literal["growth", "change", "none"]
SIDES = ("L", "R")


@dataclass(frozen=True)
class Woman:
    """The properties of a woman, drawn before any image.

    seed: of her images. exams: dates. last: date of diagnosis or last contact. side: of the affected breast, if she is
    a case. mass: the one that grows in it. For the signal `change`, by side: a possible mass (`masses`), and whether
    the first exam has it (`first`).
    """

    patient_id: str
    folder: str
    case: bool
    seed: np.random.SeedSequence
    exams: tuple[date, ...]
    last: date
    density: int
    race: str
    invasive: bool
    side: str
    shape: Shape
    mass: Mass
    masses: dict[str, Mass]
    first: dict[str, bool]

    def mass_at(self, exam: int, side: str, signal: Signal) -> tuple[Mass, float] | None:
        """The mass in a breast at exam number `exam` (from 0), and the years before diagnosis to draw it at; None
        without one.
        """
        ill = self.case and side == self.side
        if signal == "growth" and ill:
            return self.mass, self.years_left(exam)
        if signal == "change":
            there = self.first[side]
            if ill and exam % 2 == 1:
                there = not there
            return (self.masses[side], 0.0) if there else None
        return None

    def years_left(self, exam: int) -> float:
        """From an exam to the diagnosis or last contact."""
        return (self.last - self.exams[exam]).days / DAYS_PER_YEAR


@dataclass(frozen=True)
class SyntheticCohort:
    """The settings of a synthetic cohort."""

    patients: int = 320
    seed: int = 0
    image_size: tuple[int, int] = (128, 96)
    case_fraction: float = 0.45
    signal: Signal = "growth"


def synthesize(
    out: str | Path,
    patients: int = 320,
    seed: int = 0,
    *,
    image_size: tuple[int, int] = (128, 96),
    case_fraction: float = 0.45,
    signal: Signal = "growth",
    workers: int | None = None,
) -> dict[str, Any]:
    """Writes a cohort to the folder `out` and returns its counts (`patients`, `cases`, `images`, `breast_pairs`).

    image_size: (rows, columns), at least (32, 24). case_fraction: of women who develop cancer. signal: the sign of
    cancer, see above; it only changes the masses. workers: processes, default one per CPU; equal settings give equal
    files for any number of them. The folder holds `cohort.csv`, the images in `train`, `val` and `test` (50, 20 and 30
    % of the women, balanced by case), `masses.tsv` (the truth: one row per image with a mass: where it is, in pixels
    before the breast is positioned, how large, and the years to diagnosis if there is one) and `synthesis.json` (the
    settings). The folder is written completely or not at all; an earlier synthetic cohort is replaced. Raises
    UsageError for invalid settings and for a folder with other content.
    """
    settings = SyntheticCohort(patients, seed, image_size, case_fraction, signal)
    _check(settings)
    out = Path(out)
    _refuse_foreign(out)
    women = list(draw_women(settings))
    workers = min(workers or os.cpu_count() or 1, patients)

    with new_folder(out, replace=True, sync=False) as folder:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True)
        jobs = [(woman, settings, folder) for woman in women]
        if workers == 1:
            written = [_write_woman(*job) for job in jobs]
        else:
            with ProcessPoolExecutor(workers) as pool:
                written = list(pool.map(_write_woman, *zip(*jobs, strict=True), chunksize=4))
        _write_table(folder / TABLE, COLUMNS, ",", [row for rows, _ in written for row in rows])
        _write_table(folder / MASSES, MASS_COLUMNS, "\t", [row for _, masses in written for row in masses])
        (folder / SETTINGS).write_text(json.dumps(vars(settings), indent=2) + "\n", encoding="utf-8")
    return {
        "patients": patients,
        "cases": sum(woman.case for woman in women),
        "images": sum(len(rows) for rows, _ in written),
        "breast_pairs": sum(2 * (len(woman.exams) - 1) for woman in women),
    }


def draw_women(settings: SyntheticCohort) -> Iterator[Woman]:
    """The women of a cohort, by patient number."""
    rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(0,)))
    n = settings.patients
    cases = rng.permutation(n) < round(n * settings.case_fraction)
    folders = dict(zip(np.argsort(~cases, kind="stable").tolist(), (n // 10 + 1) * _DEAL, strict=False))
    numbers = np.sort(rng.choice(np.arange(10_000_000, 100_000_000, 97), n, replace=False))
    seeds = np.random.SeedSequence(settings.seed, spawn_key=(1,)).spawn(n)
    for i in range(n):
        yield _draw_woman(str(numbers[i]), folders[i], bool(cases[i]), *seeds[i].spawn(3))


def _draw_woman(
    patient_id: str,
    folder: str,
    case: bool,
    traits: np.random.SeedSequence,
    images: np.random.SeedSequence,
    changes: np.random.SeedSequence,
) -> Woman:
    """No draw here depends on `case`."""
    rng = np.random.default_rng(traits)
    first = date(2010, 1, 1) + timedelta(days=int(rng.integers(0, 5 * 365)))
    gaps = np.clip(rng.normal(1.1, 0.25, rng.integers(1, 4)), 0.7, 2.0) * DAYS_PER_YEAR
    exams = tuple(first + timedelta(days=round(days)) for days in (0.0, *np.cumsum(gaps)))
    last = exams[-1] + timedelta(days=round(rng.uniform(0.1, MAX_YEARS) * DAYS_PER_YEAR))
    shape = Shape(
        depth=rng.uniform(0.46, 0.66),
        reach=rng.uniform(0.36, 0.46),
        nipple=rng.uniform(0.47, 0.55),
        droop=rng.uniform(0.30, 0.38),
        axilla=rng.uniform(0.45, 0.65),
        muscle=(rng.uniform(0.40, 0.65), rng.uniform(0.22, 0.36)),
    )
    mass = _draw_mass(rng)
    # Separate random numbers: a woman's images are the same for every signal, except for the masses.
    own = np.random.default_rng(changes)
    return Woman(
        patient_id=patient_id,
        folder=folder,
        case=case,
        seed=images,
        exams=exams,
        last=last,
        density=int(rng.choice([1, 2, 3, 4], p=[0.1, 0.4, 0.4, 0.1])),
        race=str(rng.choice(RACES, p=[0.42, 0.38, 0.08, 0.01, 0.01, 0.02, 0.05, 0.03])),
        invasive=bool(rng.random() < 0.8),
        side=str(rng.choice(["L", "R"])),
        shape=shape,
        mass=mass,
        masses={side: _draw_mass(own) for side in SIDES},
        first={side: bool(own.random() < 0.5) for side in SIDES},
    )


def _draw_mass(rng: np.random.Generator) -> Mass:
    return Mass(
        depth=rng.uniform(0.40, 0.72),
        row=(rng.uniform(-0.18, 0.18), rng.uniform(-0.05, 0.18)),
        radius=0.072 * float(np.exp(rng.normal(0, 0.10))),
        contrast=rng.uniform(0.50, 0.60),
        lobes=np.column_stack([rng.uniform(0.02, 0.10, 4), rng.uniform(0, 2 * np.pi, 4)]),
        spicules=int(rng.integers(7, 12)),
        phase=rng.uniform(0, 2 * np.pi),
    )


def _write_woman(
    woman: Woman, settings: SyntheticCohort, folder: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Writes her images; returns their rows of the table and of the true masses."""
    size = settings.image_size
    rng = np.random.default_rng(woman.seed)
    shared = Tissue.draw(rng, size)
    anatomy = {}
    for side in SIDES:
        for view in ("CC", "MLO"):
            own = Tissue.draw(rng, size)
            anatomy[side, view] = breast(woman.shape, view, shared.mixed(own, share=0.7), woman.density)
    rows, masses = [], []
    for exam, day in enumerate(woman.exams):
        years = woman.years_left(exam)
        for (side, view), light in anatomy.items():
            exposure = Exposure.draw(rng, size)
            ill = woman.case and side == woman.side
            name = f"{woman.patient_id}_{side}_{view}_{day.isoformat()}_{rng.integers(1000, 10000)}.png"
            if found := woman.mass_at(exam, side, settings.signal):
                mass, before = found
                light = light + mass.draw(woman.shape, view, before, size) * (light > 0)
                row, column = mass.centre(woman.shape, view)
                if side == "R":
                    column = size[1] / size[0] - column
                masses.append(
                    {
                        "file_name": name,
                        "row": round(row * size[0], 2),
                        "column": round(column * size[0], 2),
                        "radius": round(mass.radius_before(before) * size[0], 3),
                        "years_to_diagnosis": round(years, 3) if ill else "",
                    }
                )
            pixels = exposure.take(np.minimum(light, 1))
            if side == "R":  # as in EMBED: the chest wall of right breasts is on the right
                pixels = np.ascontiguousarray(pixels[:, ::-1])
            PillowImage.fromarray(pixels).save(folder / woman.folder / name, compress_level=1)
            rows.append(
                {
                    "patient_id": woman.patient_id,
                    "ImageLateralityFinal": side,
                    "view": view,
                    "study_date_anon": day.isoformat(),
                    "Time_to_Cancer_Years": int(years) if ill else "",
                    "years_last_followup": int(years),
                    "density": woman.density,
                    "path_severity": (0 if woman.invasive else 1) if ill else "",
                    "RACE_DESC": woman.race,
                }
            )
    return rows, masses


def _write_table(path: Path, columns: tuple[str, ...], delimiter: str, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _check(settings: SyntheticCohort) -> None:
    if settings.patients < MIN_PATIENTS:
        raise UsageError(f"--patients {settings.patients}: at least {MIN_PATIENTS} are needed, one for each group")
    if settings.seed < 0:
        raise UsageError(f"--seed {settings.seed}: must not be negative")
    if not 0 <= settings.case_fraction <= 1:
        raise UsageError(f"--case-fraction {settings.case_fraction}: must lie in 0..1")
    if settings.signal not in get_args(Signal):
        raise UsageError(f"--signal {settings.signal}: must be one of {', '.join(get_args(Signal))}")
    height, width = settings.image_size
    if height < 32 or width < 24:
        raise UsageError(f"--height {height} --width {width}: at least 32 and 24 pixels are needed")


def _refuse_foreign(out: Path) -> None:
    """An earlier synthetic cohort may be replaced; anything else may not."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out}: a file is in the way; name another folder with --out")
    found = {path.name for path in out.iterdir()}
    ours = {TABLE, MASSES, SETTINGS, *FOLDERS}
    if found and (SETTINGS not in found or found - ours):
        strange = ", ".join(sorted(found - ours)[:3]) or f"no {SETTINGS}"
        raise UsageError(
            f"{out}: not empty, and not only a synthetic cohort ({strange}); name another folder with --out"
        )
