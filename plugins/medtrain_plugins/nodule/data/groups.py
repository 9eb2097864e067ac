"""From a configuration to the groups of a run: patches of scans for training, whole scans for evaluation."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from medtrain import Data, RunConfig
from medtrain.data import cache_dir
from medtrain.data import collate as stack
from medtrain.errors import ConfigError, DataError, first_lines, nearest

from medtrain_plugins.nodule.data.dataset import NodulePatches, NoduleScans, Sample
from medtrain_plugins.nodule.data.patches import grid_starts
from medtrain_plugins.nodule.data.sampling import Sampling, find_false_marks, triage_target
from medtrain_plugins.nodule.data.targets import make_targets
from medtrain_plugins.nodule.options import PivotOptions
from medtrain_plugins.nodule.preparation.splits import SplitMethod, assign_split
from medtrain_plugins.nodule.scans.intensity import Intensity
from medtrain_plugins.nodule.scans.manifest import MANIFEST, ManifestRow, Nodule, read_manifest

log = logging.getLogger("medtrain")

GROUPS = ("train", "validation", "test")
FILTERS = ("min_diameter", "max_diameter", "positive_fraction")
SCAN = "scan"  # key of the entries about the whole scan


def build_data(config: RunConfig, options: PivotOptions) -> Data:
    """Training patches, and whole scans of the other groups; of a stage if `config.stage` is set.

    The groups are those of the manifest (or of the held-out fold), else scans are split by patient. Whole scans have a
    batch size of one, which is set here. Raises ConfigError, DataError.
    """
    if config.data.evaluation_batch_size is None:
        config.data.evaluation_batch_size = 1
    if config.data.evaluation_batch_size > 1:
        raise ConfigError(
            f"data.evaluation_batch_size: {config.data.evaluation_batch_size}; whole scans differ in size and come one "
            "by one: leave it at 1 (windows that go through the network together: plugins.pivot.inference.batch_size)"
        )
    if config.data.num_folds or config.data.splits is not None:
        raise ConfigError(
            "data.num_folds, data.splits: the folds of scans are in their manifest (medtrain data prepare nodule "
            "--split 5-fold); choose one with plugins.pivot.fold"
        )
    groups = find_groups(config, options)
    settle_spacing(options, [row for rows in groups.values() for row in rows])
    intensity, masks = Intensity(options.window), "segmentation" in options.model.heads
    sampling = sampling_of(config, options)
    collate = Collate(options)
    data = Data(collate=collate)
    if groups["train"]:
        data.train = NodulePatches(
            groups["train"],
            intensity,
            sampling,
            patches_per_volume=options.sampling.patches_per_volume,
            augmentation=options.augmentation,
            with_mask=masks,
            false_marks=false_marks(options, groups["train"]),
        )
    for name in ("validation", "test"):
        if groups[name]:
            setattr(data, name, scans_of(groups[name], options, collate))
    data.about = describe(groups, data, sampling, config, options)
    return data


def find_groups(config: RunConfig, options: PivotOptions) -> dict[str, list[ManifestRow]]:
    """The scans of each group."""
    named = {name: getattr(options, f"{name}_data") for name in GROUPS}
    if any(named.values()):
        if config.data.table is not None:
            raise ConfigError("data.table (--data) and plugins.pivot.train_data, ... are both given; leave one out")
        found = {name: rows_of(path, options) if path else [] for name, path in named.items()}
        return refuse_shared(found)
    if config.data.table is None:
        return by_split(read_manifest(demo_manifest(options)))
    held_out = config.data.validation_fraction, config.data.test_fraction
    return split_rows(rows_of(config.data.table, options), held_out, config.run.seed, options)


def settle_spacing(options: PivotOptions, rows: Sequence[ManifestRow]) -> None:
    """Sets the run's spacing to that of the scans, so that new scans are resampled to it.

    Raises DataError if the scans differ from one another, or from the configured spacing.
    """
    found = {tuple(round(step, 4) for step in row.spacing): row.series for row in rows}
    if len(found) > 1:
        said = [f"{' x '.join(map(str, spacing))} mm: {series}" for spacing, series in found.items()]
        raise DataError(f"the scans differ in their spacing; prepare them alike\n{first_lines(said)}")
    (spacing,) = found or [options.voxel_mm]
    if options.spacing is not None and not np.allclose(spacing, options.spacing, rtol=1e-3):
        raise DataError(
            f"the scans have voxels of {list(spacing)} mm (z, y, x), this run is of {list(options.spacing)} mm "
            "(plugins.pivot.spacing); prepare them alike"
        )
    options.spacing = spacing  # type: ignore[assignment]


def rows_of(path: Path, options: PivotOptions) -> list[ManifestRow]:
    """The rows of a manifest, of a folder with a manifest, or of a folder of scans, which are prepared if needed."""
    if path.is_file() or (path / MANIFEST).is_file():
        return read_manifest(path)
    if not path.is_dir():
        raise ConfigError(f"{path}: there is no manifest and no folder of scans")
    tables = {}
    for name, usual in (("annotations", "annotations.csv"), ("excluded", "annotations_excluded.csv")):
        given = getattr(options, name)
        if given is not None and not given.is_file():
            raise ConfigError(f"plugins.pivot.{name}: there is no file {given}")
        tables[name] = given or (path / usual if (path / usual).is_file() else None)
    if tables["annotations"] is None:
        raise ConfigError(
            f"{path}: no {MANIFEST} and no annotations.csv is in this folder; name the table of nodules in "
            "plugins.pivot.annotations, or prepare the scans with `medtrain data prepare nodule`"
        )
    name = hashlib.sha256(f"{path.resolve()} {options.voxel_mm}".encode()).hexdigest()[:12]
    out = (options.prepared / path.name) if options.prepared else cache_dir() / f"nodule-{path.name}-{name}"
    return read_manifest(_prepared(path, out, tables["annotations"], tables["excluded"], options.voxel_mm))


@cache
def _prepared(
    path: Path, out: Path, annotations: Path | None, excluded: Path | None, spacing: tuple[float, float, float]
) -> Path:
    """Prepares the scans of a folder that are not prepared yet, once in a run; returns their folder."""
    from medtrain_plugins.nodule.preparation.prepare import ScanPreparation, prepare

    log.info("Preparing the scans in %s, kept in %s", path, out)
    prepare(path, out, ScanPreparation(spacing=spacing), annotations=annotations, excluded=excluded, split="none")
    return out


def split_rows(
    rows: list[ManifestRow], held_out: tuple[float, float], seed: int, options: PivotOptions
) -> dict[str, list[ManifestRow]]:
    """Rows by group: from the manifest, with the chosen fold held out, or split by patient.

    held_out: the fractions of validation and test, for a manifest without groups.
    """
    folds = {row.fold for row in rows if row.fold is not None}
    if options.fold is not None:
        if options.fold not in folds:
            known = ", ".join(map(str, sorted(folds))) or "none"
            raise ConfigError(f"plugins.pivot.fold: {options.fold}, but the folds of the manifest are: {known}")
        return {
            "train": [row for row in rows if row.fold not in (None, options.fold)],
            "validation": [row for row in rows if row.fold == options.fold],
            "test": [],
        }
    if any(row.split for row in rows):
        return by_split(rows)
    if folds:
        raise ConfigError(f"plugins.pivot.fold: the manifest has {len(folds)} folds; choose the one to hold out")
    validation, test = held_out
    return by_split(assign_split(rows, SplitMethod((1 - validation - test, validation, test)), seed))


def by_split(rows: Sequence[ManifestRow]) -> dict[str, list[ManifestRow]]:
    """Rows by their group in the manifest; rows without a group are left out with a warning."""
    if left := sum(not row.split for row in rows):
        log.warning("%d scans of the manifest are in no group and are left out", left)
    return {name: [row for row in rows if row.split == name] for name in GROUPS}


def refuse_shared(groups: dict[str, list[ManifestRow]]) -> dict[str, list[ManifestRow]]:
    """The groups; raises DataError if a series is in two of them."""
    seen: dict[str, str] = {}
    for name, rows in groups.items():
        for row in rows:
            if seen.setdefault(row.series, name) != name:
                raise DataError(f"series {row.series} is in the {seen[row.series]} scans and in the {name} scans")
    return groups


def sampling_of(config: RunConfig, options: PivotOptions) -> Sampling:
    """How training patches are drawn in the current stage."""
    chosen = options.sampling
    sampling = Sampling(
        chosen.patch_size,
        chosen.positive_fraction,
        chosen.jitter,
        chosen.hard_negative_fraction if chosen.hard_negatives else 0.0,
        chosen.nodules_in_negatives,
        chosen.min_diameter,
        chosen.max_diameter,
    )
    if (stage := config.stage) is None:
        return sampling
    for key in stage.filter:
        if key not in FILTERS:
            raise ConfigError(f"stages: filter {key!r}{nearest(key, FILTERS)}; there are {', '.join(FILTERS)}")
    changes: dict[str, Any] = dict(stage.filter)
    if stage.patch_size:
        if len(stage.patch_size) not in (1, 3):
            raise ConfigError(f"stages: patch_size {stage.patch_size}: give one number, or three for z, y, x")
        changes["patch_size"] = tuple(stage.patch_size * (3 // len(stage.patch_size)))
    return replace(sampling, **changes)


def false_marks(options: PivotOptions, rows: Sequence[ManifestRow]) -> Mapping[str, Any]:
    """The wrong candidates of an earlier run, by series."""
    if options.sampling.hard_negatives is None:
        return {}
    from medtrain_plugins.nodule.annotations.tables import read_findings

    path = options.sampling.hard_negatives
    found = find_false_marks(read_findings(path, "candidates"), rows, options.sampling.hard_negative_score)
    if not found:
        raise DataError(
            f"plugins.pivot.sampling.hard_negatives: {path} has no wrong candidate in the training scans (series and "
            "world coordinates must be those of the scans)"
        )
    return found


def scans_of(rows: Sequence[ManifestRow], options: PivotOptions, collate: Collate | None = None) -> EvaluatedScans:
    """Whole scans for evaluation."""
    return EvaluatedScans(
        rows,
        Intensity(options.window),
        collate or Collate(options),
        patch_size=options.sampling.patch_size,
        stride=options.stride,
        loss_patches=max(1, options.evaluation.loss_patches),
        with_mask="segmentation" in options.model.heads,
    )


class EvaluatedScans(NoduleScans):
    """Whole scans. Each sample is a batch of fixed patches for the loss, and under `scan` their scan.

    The patches come from a grid, `stride` voxels apart: those with nodules first, then others from all over the scan,
    `loss_patches` at most. `scan`: `image` (D, H, W) float32 after `intensity`; `mask` likewise if there is one;
    `affine` (4, 4) float64, z, y, x -> world; `spacing` (3,); `nodules` (N, 6) float64: world x, y, z, diameter in mm
    (-1 where unknown), triage in [0, 1] and texture (NaN where unknown); `irrelevant` (M, 6) the same; `centers` (K,
    3), `diameters` (K,): the nodules within the scan, in voxels and mm.
    """

    def __init__(
        self,
        rows: Sequence[ManifestRow],
        intensity: Intensity,
        collate: Collate,
        *,
        patch_size: tuple[int, int, int],
        stride: Sequence[int],
        loss_patches: int,
        with_mask: bool = False,
    ) -> None:
        super().__init__(rows, intensity, with_mask=with_mask)
        self.collate, self.patch_size = collate, patch_size
        self.starts = [
            choose_starts(grid_starts(row.shape, patch_size, stride), points.centres, patch_size, loss_patches)
            for row, points in zip(self.rows, self.points, strict=True)
        ]

    def __getitem__(self, index: int, /) -> Sample:
        row = self.rows[index]
        batch: Sample = self.collate(
            [{"sample_id": row.series} | self.patch(index, start, self.patch_size) for start in self.starts[index]]
        )
        whole = super().__getitem__(index)
        scan: Sample = {
            "image": whole["image"][0],
            "affine": torch.tensor(row.affine, dtype=torch.float64),
            "spacing": torch.tensor(row.spacing, dtype=torch.float64),
            "nodules": torch.from_numpy(describe_nodules([*row.nodules, *row.unplaced])),
            "irrelevant": torch.from_numpy(describe_nodules(row.irrelevant)),
            "centers": torch.from_numpy(self.points[index].centres),
            "diameters": torch.from_numpy(self.points[index].diameters),
        }
        if "mask" in whole:
            scan["mask"] = whole["mask"][0]
        return batch | {"sample_id": row.series, SCAN: scan}


class Collate:
    """Samples -> batch. Patches are stacked, with the targets of the network's heads; a whole scan is one batch."""

    def __init__(self, options: PivotOptions) -> None:
        self.output_stride = options.model.output_stride
        self.diameter_channels = 3 if options.model.type == "reference_unet" else options.model.diameter_channels
        self.sigma_mm = options.sigma_mm

    def __call__(self, samples: list[Sample]) -> Sample:
        if SCAN in samples[0]:
            (whole,) = samples
            return whole | {"sample_id": [whole["sample_id"]]}
        targets = [self.targets(sample) for sample in samples]
        batch: Sample = stack([sample | made for sample, made in zip(samples, targets, strict=True)])
        return batch

    def targets(self, sample: Sample) -> Sample:
        """The dense targets of one patch (`targets.make_targets`)."""
        there = sample["centers"].isfinite().all(dim=1)
        ignored = sample["ignored_centers"].isfinite().all(dim=1)
        return make_targets(
            sample["image"].shape[1:],
            sample["centers"][there].numpy(),
            sample["diameters"][there].numpy(),
            sample["triage"][there].numpy(),
            spacing=sample["spacing"].numpy(),
            stride=self.output_stride,
            diameter_channels=self.diameter_channels,
            sigma_mm=self.sigma_mm,
            ignore=sample["ignored_centers"][ignored].numpy(),
            ignore_diameters=sample["ignored_diameters"][ignored].numpy(),
        )


def choose_starts(starts: Any, centres: Any, size: Sequence[int], count: int) -> Any:
    """At most `count` patches of a grid (N, 3): those with nodules first, the others evenly spread."""
    inside = ((centres[None] >= starts[:, None]) & (centres[None] < starts[:, None] + np.asarray(size))).all(axis=2)
    holds = inside.any(axis=1)
    positive, others = starts[holds], starts[~holds]
    room = max(count - len(positive), 0)
    spread = np.linspace(0, len(others) - 1, min(room, len(others))).round().astype(int)
    return np.concatenate([positive[:count], others[spread]])


def describe_nodules(nodules: Sequence[Nodule]) -> Any:
    """(N, 6) float64: world x, y, z, diameter (-1 where unknown), triage and texture (NaN where unknown)."""
    table = [
        (*one.world, one.diameter_mm or -1.0, triage_target(one), np.nan if one.texture is None else one.texture)
        for one in nodules
    ]
    return np.array(table, dtype=np.float64).reshape(-1, 6)


def demo_manifest(options: PivotOptions) -> Path:
    """The synthetic scans, made on first use and kept in the cache."""
    if not options.demo_scans:
        raise ConfigError(
            "data.table: no data given; use --data with the folder of a manifest (medtrain data prepare nodule) or of "
            "scans with annotations.csv, or --preset demo"
        )
    from medtrain_plugins.nodule.synthetic import phantom, synth

    # A changed generator makes other scans, so its source code is part of the name.
    made_by = hashlib.sha256(Path(synth.__file__).read_bytes() + Path(phantom.__file__).read_bytes()).hexdigest()[:8]
    folder = cache_dir() / f"pivot-demo-{options.demo_scans}-{options.demo_seed}-{made_by}"
    if not (folder / MANIFEST).is_file():
        log.info("Making %d synthetic scans, kept in %s", options.demo_scans, folder)
        synth.demo_manifest(folder, options.demo_scans, options.demo_seed)
    return folder / MANIFEST


def describe(
    groups: Mapping[str, Sequence[ManifestRow]],
    data: Data,
    sampling: Sampling,
    config: RunConfig,
    options: PivotOptions,
) -> dict[str, Any]:
    """The description of the data in the run directory."""
    told: dict[str, Any] = {
        "source": str(config.data.table or options.train_data or f"{options.demo_scans} synthetic scans"),
        "scans": {name: len(rows) for name, rows in groups.items()},
        "nodules": {name: sum(len(row.nodules) for row in rows) for name, rows in groups.items()},
        "intensity": Intensity(options.window).as_dict(),
        "images": hashlib.sha256(
            "".join(sorted(row.checksum for rows in groups.values() for row in rows)).encode()
        ).hexdigest(),
    }
    if data.train is not None:
        share = data.train.expected_fraction  # type: ignore[attr-defined]
        told["positive_fraction"] = share
        if share < sampling.positive_fraction - 1e-9:
            log.warning(
                "positive_fraction is %.2f, but only a share of %.2f of the training scans has nodules to be learnt",
                sampling.positive_fraction,
                share,
            )
    return told
