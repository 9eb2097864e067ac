"""Evaluation of a detector on whole scans: windows over each scan, candidates, and what they are worth.

The table of an evaluation (predictions.parquet) has a row for each scan, nodule, irrelevant finding and candidate, so
that every value can be worked out from it again, of one process or several, of one fold or all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from medtrain.protocols import Evaluation, Rows, Undefined, as_terms, compute_all, evaluation_mode, move_batch
from torch import nn

from medtrain_plugins.imaging.volume import Geometry
from medtrain_plugins.nodule.annotations.tables import Findings
from medtrain_plugins.nodule.data.groups import SCAN, scans_of
from medtrain_plugins.nodule.data.targets import make_heatmap, sigma_of, to_output
from medtrain_plugins.nodule.evaluation.evaluate import NoduleEvaluation, Settings, evaluate_detections
from medtrain_plugins.nodule.evaluation.froc import RATES
from medtrain_plugins.nodule.inference.predict import autocast_type
from medtrain_plugins.nodule.inference.sliding_window import compute_maps, find_candidates, stride_of
from medtrain_plugins.nodule.model.heads import DetectorModel
from medtrain_plugins.nodule.options import EvaluationOptions, PivotOptions
from medtrain_plugins.nodule.scans.intensity import Intensity
from medtrain_plugins.nodule.scans.lungs import lung_mask
from medtrain_plugins.nodule.scans.resampling import AIR

if TYPE_CHECKING:
    from medtrain import Run, Section
    from medtrain.protocols import Comparison

Batch = dict[str, Any]
NUMBERS = ("x", "y", "z", "diameter_mm", "score", "triage", "texture")
SUMS = ("heatmap_overlap", "heatmap_total", "mask_overlap", "mask_total")
COLUMNS = ("sample_id", "kind", "series", *NUMBERS, *SUMS)
LARGER = (
    "cpm",
    *(f"sensitivity_at_{rate:g}" for rate in RATES),
    "average_precision",
    "detection_dice",
    "segmentation_dice",
    "centre_accuracy",
    "size_accuracy",
    "triage_auc",
    "triage_correlation",
)
SMALLER = (
    "centre_error_median",
    "centre_error_mean",
    "diameter_error_median",
    "diameter_error_mean",
    "triage_error",
)
NOT_SEARCHED = "whole scans are searched at every {every}. evaluation (plugins.pivot.evaluation.detection_every)"
_TEXTURES = ((2.0, "ground glass"), (4.0, "part solid"), (math.inf, "solid"))


class DetectionMetric:
    """The values of a search through whole scans, of those that should be large or of those that should be small.

    cpm, sensitivity_at_<rate>, average_precision: of the protocol (`evaluation`). detection_dice: of predicted and true
    heatmaps. segmentation_dice: of masks. Of found nodules: centre_accuracy, the share whose centre is within the
    tolerance; size_accuracy likewise; triage_auc (high risk or not), triage_correlation (Spearman); the errors of
    centres (mm), diameters (relative) and triage (mean, of 0 to 1).
    """

    def __init__(self, options: EvaluationOptions, mode: Literal["max", "min"] = "max") -> None:
        self.options, self.mode = options, mode
        self.names = list(LARGER if mode == "max" else SMALLER)

    def rows(self, outputs: Batch, batch: Batch) -> Mapping[str, Any]:
        """Nothing: rows come from whole scans (`evaluate_scans`)."""
        return {}

    def compute(self, rows: Rows) -> dict[str, float]:
        """The values of the table of an evaluation."""
        found = evaluate_rows(rows, self.options)
        values = found.metrics() | sums_of(rows) | accuracies(found, self.options)
        return {name: _defined(name, values[name], found) for name in self.names}

    def details(self, rows: Rows, seed: int) -> dict[str, Any]:
        """Intervals of the protocol's values, and the whole evaluation."""
        if self.mode == "min":
            return {}
        found = evaluate_rows(rows, self.options, self.options.replicates, seed)
        named = {name if name == "cpm" else f"sensitivity_at_{name}": list(v) for name, v in found.intervals.items()}
        return {"intervals": named, "detection": found.document()}

    def compare(
        self, tables: Mapping[str, Rows], metrics: Mapping[str, DetectionMetric], seed: int, replicates: int
    ) -> Comparison:
        """Several runs on the scans they share; candidates of two runs have nothing to do with each other."""
        from medtrain_plugins.nodule.evaluation.compare import compare_detections

        return compare_detections(tables, metrics, seed, replicates)


def metrics_of(options: PivotOptions) -> list[DetectionMetric]:
    """The metrics of a run; the CPM is the first."""
    return [DetectionMetric(options.evaluation, "max"), DetectionMetric(options.evaluation, "min")]


def evaluate_scans(run: Run, loader: Iterable[Batch], options: PivotOptions, untrained: nn.Module | None) -> Evaluation:
    """The loss of fixed patches, and the search of whole scans where it is due.

    untrained: a network to be compared with, on the same scans. Training patches in the loader stand for their scans.
    """
    due = run.optimizer is None or is_due(run, options.evaluation.detection_every)
    network = run.network if run.network is not None else DetectorModel(run.model)
    losses: dict[str, list[float]] = {}
    tables: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    amp = autocast_type(run.config.computational.amp, run.device)
    with evaluation_mode(network), torch.inference_mode():
        for batch in whole_scans(run, loader, options):
            if options.evaluation.loss_patches:
                for name, pair in patch_losses(run, network, batch, amp).items():
                    losses[name] = [a + b for a, b in zip(losses.get(name, [0.0, 0.0]), pair, strict=True)]
            if due:
                tables.append(search(network, batch, options, amp))
                if untrained is not None:
                    compared.append(search(untrained, batch, options, amp))
    gathered = gather((losses, tables, compared))
    metrics = metrics_of(options)
    order = order_of(run)
    rows = join([table for _, part, _ in gathered for table in part], order)
    values = mean_losses([part for part, _, _ in gathered])
    reasons: dict[str, str] = {}
    if due:
        found, reasons = compute_all(metrics, rows)  # type: ignore[arg-type]
        values |= found
    else:
        reason = NOT_SEARCHED.format(every=options.evaluation.detection_every)
        values |= {name: math.nan for metric in metrics for name in metric.names}
        reasons |= {name: reason for metric in metrics for name in metric.names}
    evaluation = Evaluation(group_of(run, rows), values, rows, reasons)
    if untrained is not None:
        before, _ = compute_all(metrics, join([table for _, _, part in gathered for table in part], order))  # type: ignore[arg-type]
        evaluation.metrics["untrained_cpm"] = before["cpm"]
        evaluation.details["untrained"] = {name: before[name] for name in (*LARGER, *SMALLER)}
    return evaluation


def is_due(run: Run, every: int) -> bool:
    """Whether this evaluation of a training searches whole scans: every `every`-th, and that of the last epoch."""
    interval = max(run.config.optimization.evaluation_interval, 1)
    number = -(-(run.epoch + 1) // interval)
    return number % every == 0 or run.epoch + 1 >= run.num_epochs


def whole_scans(run: Run, loader: Iterable[Batch], options: PivotOptions) -> Iterator[Batch]:
    """The scans of a loader, each once; of training patches, the scans they are from."""
    patches: dict[str, None] = {}
    for batch in loader:
        if SCAN in batch:
            yield batch
        else:
            patches |= dict.fromkeys(batch["series_uid"])
    if not patches or run.data is None:
        return
    rows = {row.series: row for dataset in run.data.groups().values() for row in rows_behind(dataset)}
    scans = scans_of([rows[series] for series in patches if series in rows], options)
    for number in range(len(scans)):
        yield move_batch(scans.collate([scans[number]]), run.device)


def rows_behind(dataset: Any) -> list[Any]:
    """The manifest rows of a dataset, also within those that show a part of it or several joined."""
    if hasattr(dataset, "rows"):
        return list(dataset.rows)
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    return [row for one in inner if one is not None for row in rows_behind(one)]


def patch_losses(run: Run, network: nn.Module, batch: Batch, amp: torch.dtype | None) -> dict[str, tuple[float, float]]:
    """Sum and weight of each of the loss's terms over the fixed patches of a scan, one patch at a time."""
    sums: dict[str, tuple[float, float]] = {}
    for number in range(len(batch["image"])):
        part = {
            name: value[number : number + 1]
            for name, value in batch.items()
            if isinstance(value, torch.Tensor) and value.dim()
        }
        with torch.autocast(run.device.type, dtype=amp, enabled=amp is not None):
            terms = as_terms(run.loss(network(part), part), 1, run.device)
        for name, term in terms.items():
            total, weight = sums.get(name, (0.0, 0.0))
            sums[name] = total + float(term.sum), weight + float(term.weight)
    return sums


def search(network: nn.Module, batch: Batch, options: PivotOptions, amp: torch.dtype | None) -> dict[str, Any]:
    """The rows of one scan: itself, its findings, the network's candidates. Columns as `COLUMNS`."""
    scan, series = batch[SCAN], str(batch["sample_id"][0])
    image, spacing, intensity = scan["image"], scan["spacing"].cpu().numpy(), Intensity(options.window)
    maps = compute_maps(
        network,
        image,
        options.inference,
        window=options.sampling.patch_size,
        device=image.device,
        amp=amp,
        pad_value=float(intensity(AIR)),
        inside=lung_mask(intensity.to_hu(image.cpu().numpy()), spacing) if options.inference.lungs_only else None,
    )
    stride = stride_of(network)
    candidates = find_candidates(maps, spacing, options.inference, stride)
    geometry = Geometry(tuple(image.shape), scan["affine"].cpu().numpy())
    table = _Table(series)
    table.add("scan", **overlaps(maps, scan, stride, options))
    for kind, findings in (("nodule", scan["nodules"]), ("irrelevant", scan["irrelevant"])):
        for x, y, z, diameter, triage, texture in findings.cpu().tolist():
            table.add(kind, x=x, y=y, z=z, diameter_mm=diameter, triage=triage, texture=texture)
    world = geometry.to_world(np.array([one.zyx for one in candidates]).reshape(-1, 3))
    for one, (x, y, z) in zip(candidates, world.tolist(), strict=True):
        diameter = math.nan if one.diameter_mm is None else one.diameter_mm
        triage = one.triage[0] if one.triage else math.nan
        table.add("candidate", x=x, y=y, z=z, diameter_mm=diameter, score=one.confidence, triage=triage)
    return table.columns


class _Table:
    """Columns that grow row by row."""

    def __init__(self, series: str) -> None:
        self.series = series
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.counts: dict[str, int] = {}

    def add(self, kind: str, **values: float) -> None:
        number = self.counts[kind] = self.counts.get(kind, 0) + 1
        name = self.series if kind == "scan" else f"{self.series}/{kind}-{number}"
        row = {"sample_id": name, "kind": kind, "series": self.series, **values}
        for column, cells in self.columns.items():
            cells.append(row.get(column, math.nan))


def overlaps(maps: Mapping[str, torch.Tensor], scan: Batch, stride: int, options: PivotOptions) -> dict[str, float]:
    """Twice the common part and the sum of predicted and true heatmap, and of masks where there are."""
    heatmap = maps["heatmap"][0].cpu().float()
    spacing = scan["spacing"].cpu().numpy()
    diameters = scan["diameters"].cpu().numpy()
    sigmas = [options.sigma_mm or sigma_of(d if d > 0 else 1.0) for d in diameters]
    centres = to_output(scan["centers"].cpu().numpy(), stride)
    truth = torch.from_numpy(make_heatmap(heatmap.shape, centres, spacing * stride, sigmas))
    told = {
        "heatmap_overlap": 2 * float((heatmap * truth).sum()),
        "heatmap_total": float(heatmap.sum() + truth.sum()),
    }
    if "segmentation" in maps and "mask" in scan:
        mask = scan["mask"].cpu()
        known = mask.isfinite()
        predicted = (maps["segmentation"][0].cpu() >= 0.5) & known
        true = (mask > 0.5) & known
        told["mask_overlap"] = 2 * float((predicted & true).sum()) if known.any() else math.nan
        told["mask_total"] = float(predicted.sum() + true.sum()) if known.any() else math.nan
    return told


def evaluate_rows(rows: Rows, options: EvaluationOptions, replicates: int = 0, seed: int = 0) -> NoduleEvaluation:
    """The evaluation of the table of scans, findings and candidates."""
    kind = rows["kind"] if "kind" in rows else np.array([], dtype=object)

    def findings(name: str, scores: bool = False) -> Findings:
        chosen = kind == name
        world = np.stack([rows[axis][chosen] for axis in "xyz"], axis=1)
        return Findings.of(
            rows["series"][chosen],
            world,
            diameter=rows["diameter_mm"][chosen],
            score=rows["score"][chosen] if scores else None,
            malignancy=rows["triage"][chosen],
            texture=None if scores else [_texture(value) for value in rows["texture"][chosen]],
            name=f"{name}s",
        )

    settings = Settings(
        options.protocol,
        options.max_distance,
        options.max_marks,
        replicates,
        seed,
        malignant_from=options.high_risk,
    )
    excluded = findings("irrelevant") if options.protocol == "luna16" and (kind == "irrelevant").any() else None
    scans = rows["series"][kind == "scan"].tolist()
    return evaluate_detections(findings("nodule"), findings("candidate", True), excluded, scans, settings)


def accuracies(found: NoduleEvaluation, options: EvaluationOptions) -> dict[str, float]:
    """Shares of found nodules within the tolerances, and the agreement of triage."""
    matched = found.matching.found
    nodules, hits = found.matching.nodules[matched], found.matching.hit[matched]
    away = np.linalg.norm(found.annotations.xyz[nodules] - found.candidates.xyz[hits], axis=1)
    true, said = found.annotations.diameter[nodules], found.candidates.diameter[hits]
    sized = np.isfinite(said) & (true > 0)
    off = np.abs(said[sized] - true[sized]) / true[sized]
    values = {
        "centre_accuracy": _mean(away <= options.centre_tolerance),
        "size_accuracy": _mean(off <= options.size_tolerance),
    }
    triage = found.triage or {}
    values["triage_auc"] = float(triage.get("auc", math.nan))
    correlation = triage.get("spearman", math.nan)
    values["triage_correlation"] = float(correlation if correlation is not None else math.nan)
    assert found.annotations.malignancy is not None and found.candidates.malignancy is not None
    difference = np.abs(found.annotations.malignancy[nodules] - found.candidates.malignancy[hits])
    values["triage_error"] = _mean(difference[np.isfinite(difference)])
    return values


def sums_of(rows: Rows) -> dict[str, float]:
    """Dice of heatmaps and of masks, over all scans together."""
    values = {}
    for name, part in (("detection_dice", "heatmap"), ("segmentation_dice", "mask")):
        known = np.isfinite(rows[f"{part}_total"])
        overlap, total = rows[f"{part}_overlap"][known].sum(), rows[f"{part}_total"][known].sum()
        values[name] = float(overlap / total) if known.any() and total else math.nan
    return values


def gather(part: Any) -> list[Any]:
    """What every process has, the same on all of them."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [part]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts


def mean_losses(parts: Sequence[dict[str, list[float]]]) -> dict[str, float]:
    """`loss` and its terms from the sums and weights of every process."""
    names = dict.fromkeys(name for part in parts for name in part)
    means = {}
    for name in names:
        total, weight = (sum(part.get(name, [0.0, 0.0])[i] for part in parts) for i in (0, 1))
        means[name] = total / weight if weight else 0.0
    if not means:
        return {}
    return {"loss": sum(means.values())} | {f"loss_{name}": value for name, value in means.items()}


def join(tables: Sequence[dict[str, Any]], order: Mapping[str, int]) -> Rows:
    """The tables of all scans as one, each scan once, in the order of the dataset."""
    by_scan = {table["series"][0]: table for table in tables}
    chosen = sorted(by_scan, key=lambda series: (order.get(series, len(order)), series))
    rows: Rows = {}
    for name in COLUMNS:
        cells = [cell for series in chosen for cell in by_scan[series][name]]
        rows[name] = np.array(cells, dtype=object if name in COLUMNS[:3] else np.float64)
    return rows


def order_of(run: Run) -> dict[str, int]:
    """Series -> its place in the run's data."""
    groups = {} if run.data is None else run.data.groups()
    series = dict.fromkeys(row.series for dataset in groups.values() for row in rows_behind(dataset))
    return {name: number for number, name in enumerate(series)}


def group_of(run: Run, rows: Rows) -> str:
    """Which of the run's groups the evaluated scans are."""
    if run.optimizer is not None:
        return "validation"
    seen = set(rows["series"].tolist())
    for name, dataset in ({} if run.data is None else run.data.groups()).items():
        if seen and seen == {row.series for row in rows_behind(dataset)}:
            return str(name)
    return "all"


def detection_sections(run: Run, options: PivotOptions) -> list[Section]:
    """The report: protocol, strata, accuracy; and the network before it was trained, beside it."""
    from medtrain.protocols import Section

    from medtrain_plugins.nodule.evaluation.report import evaluation_sections

    evaluation = run.evaluation
    if evaluation is None or "kind" not in evaluation.rows or not len(evaluation.rows["kind"]):
        return []
    settings = options.evaluation
    sections = evaluation_sections(evaluate_rows(evaluation.rows, settings, settings.replicates, run.config.run.seed))
    if before := evaluation.details.get("untrained"):
        import pandas as pd

        shown = ("cpm", "sensitivity_at_1", "sensitivity_at_8", "centre_error_median", "diameter_error_median")
        table = pd.DataFrame(
            [
                {"": name.replace("_", " "), "trained": evaluation.metrics[name], "untrained": before[name]}
                for name in shown
            ]
        )
        text = "The same network with the weights it had before training, on the same scans: what is there by chance."
        sections.insert(1, Section("Before training", text=text, tables={"Trained and untrained": table}))
    return sections


def _defined(name: str, value: float, found: NoduleEvaluation) -> float:
    if not math.isnan(value):
        return float(value)
    if not found.counts["nodules"]:
        return Undefined("no nodule is annotated in these scans")
    if name in ("detection_dice", "segmentation_dice"):
        return Undefined("no scan has such maps")
    if name == "average_precision" or not found.counts["true_positives"]:
        return Undefined("no candidate hits a nodule")
    return Undefined("not known of the nodules that were found, or of their candidates")


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _texture(value: float) -> str:
    return "unknown" if math.isnan(value) else next(name for limit, name in _TEXTURES if value <= limit)
