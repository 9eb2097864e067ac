"""Evaluation of a detector on whole scans: its candidates in each scan become rows of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from medtrain.protocols import Evaluation, Rows, as_terms, compute_all, evaluation_mode, move_batch
from torch import nn

from medtrain_plugins.imaging.volume import Geometry
from medtrain_plugins.nodule.data.groups import SCAN, scans_of
from medtrain_plugins.nodule.data.targets import make_heatmap, sigma_of, to_output
from medtrain_plugins.nodule.evaluation.metrics import metrics_of
from medtrain_plugins.nodule.evaluation.rows import LARGER, SMALLER, ScanTable, join_tables
from medtrain_plugins.nodule.inference.sliding_window import compute_maps, find_candidates, stride_of
from medtrain_plugins.nodule.model.heads import DetectorModel
from medtrain_plugins.nodule.options import PivotOptions
from medtrain_plugins.nodule.scans.intensity import Intensity
from medtrain_plugins.nodule.scans.lungs import lung_mask
from medtrain_plugins.nodule.scans.resampling import AIR

if TYPE_CHECKING:
    from medtrain import Run

Batch = dict[str, Any]
NOT_SEARCHED = "whole scans are searched at every {every}. evaluation (plugins.pivot.evaluation.detection_every)"


def evaluate_scans(run: Run, loader: Iterable[Batch], options: PivotOptions, untrained: nn.Module | None) -> Evaluation:
    """The loss of fixed patches and, when due, detection in whole scans.

    untrained: a network for comparison on the same scans. Training patches in the loader stand for their scans.
    """
    due = run.optimizer is None or is_due(run, options.evaluation.detection_every)
    network = run.network if run.network is not None else DetectorModel(run.model)
    losses: dict[str, list[float]] = {}
    tables: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    with evaluation_mode(network), torch.inference_mode():
        for batch in whole_scans(run, loader, options):
            if options.evaluation.loss_patches:
                for name, pair in patch_losses(run, network, batch).items():
                    losses[name] = [a + b for a, b in zip(losses.get(name, [0.0, 0.0]), pair, strict=True)]
            if due:
                tables.append(search(network, batch, options, run.amp))
                if untrained is not None:
                    compared.append(search(untrained, batch, options, run.amp))
    gathered = run.world.gather([(losses, tables, compared)])
    metrics = metrics_of(options)
    order = order_of(run)
    rows = join_tables([table for _, part, _ in gathered for table in part], order)
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
        before, _ = compute_all(metrics, join_tables([table for _, _, part in gathered for table in part], order))  # type: ignore[arg-type]
        evaluation.metrics["untrained_cpm"] = before["cpm"]
        evaluation.details["untrained"] = {name: before[name] for name in (*LARGER, *SMALLER)}
    return evaluation


def is_due(run: Run, every: int) -> bool:
    """Whether this evaluation during training searches whole scans: every `every`-th, and that of the last epoch."""
    interval = max(run.config.optimization.evaluation_interval, 1)
    number = -(-(run.epoch + 1) // interval)
    return number % every == 0 or run.epoch + 1 >= run.num_epochs


def whole_scans(run: Run, loader: Iterable[Batch], options: PivotOptions) -> Iterator[Batch]:
    """The scans of a loader, each once; for training patches, their scans."""
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
    """The manifest rows of a dataset, also inside subsets and concatenated datasets."""
    if hasattr(dataset, "rows"):
        return list(dataset.rows)
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    return [row for one in inner if one is not None for row in rows_behind(one)]


def patch_losses(run: Run, network: nn.Module, batch: Batch) -> dict[str, tuple[float, float]]:
    """Sum and weight of each term of the loss over the fixed patches of a scan, one patch at a time."""
    sums: dict[str, tuple[float, float]] = {}
    for number in range(len(batch["image"])):
        part = {
            name: value[number : number + 1]
            for name, value in batch.items()
            if isinstance(value, torch.Tensor) and value.dim()
        }
        with run.autocast():
            terms = as_terms(run.loss(network(part), part), 1, run.device)
        for name, term in terms.items():
            total, weight = sums.get(name, (0.0, 0.0))
            sums[name] = total + float(term.sum), weight + float(term.weight)
    return sums


def search(network: nn.Module, batch: Batch, options: PivotOptions, amp: torch.dtype | None) -> dict[str, Any]:
    """The rows of one scan: the scan, its findings, the network's candidates. Columns as `COLUMNS`."""
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
    table = ScanTable(series)
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


def overlaps(maps: Mapping[str, torch.Tensor], scan: Batch, stride: int, options: PivotOptions) -> dict[str, float]:
    """Twice the intersection, and the sum, of predicted and true heatmap; the same for masks, if there are any."""
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


def mean_losses(parts: Sequence[dict[str, list[float]]]) -> dict[str, float]:
    """`loss` and its terms, from the sums and weights of all processes."""
    names = dict.fromkeys(name for part in parts for name in part)
    means = {}
    for name in names:
        total, weight = (sum(part.get(name, [0.0, 0.0])[i] for part in parts) for i in (0, 1))
        means[name] = total / weight if weight else 0.0
    if not means:
        return {}
    return {"loss": sum(means.values())} | {f"loss_{name}": value for name, value in means.items()}


def order_of(run: Run) -> dict[str, int]:
    """Series -> its position in the run's data."""
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
