"""Whole scans are searched with the network, and what comes of it is written and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from medtrain import Trainer
from medtrain.errors import DataError
from medtrain.protocols.metric import Evaluation
from medtrain_plugins.nodule.data.groups import build_data
from medtrain_plugins.nodule.evaluation.metrics import metrics_of
from medtrain_plugins.nodule.evaluation.whole_scans import search
from medtrain_plugins.nodule.model.heads import DetectorModel, DetectorOutput
from medtrain_plugins.nodule.scans.manifest import read_manifest
from pivot_runs import config_of, make_manifest, options_of
from torch import nn


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_manifest(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    """A run of one epoch, evaluated on its test group and reported."""
    out = tmp_path_factory.mktemp("run") / "run"
    trainer = Trainer(out, config=config_of(manifest, {"evaluation": {"untrained": True}}))
    trainer.train()
    evaluation = trainer.evaluate("test")
    trainer.report()
    return out, evaluation


class Oracle(nn.Module):
    """Knows where the nodules are: a peak of probability 0.9 at each, 8 mm wide."""

    tasks = ("heatmap",)
    output_stride = 1

    def __init__(self, shape: tuple[int, ...], centres: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.full((1, 1, *shape), -8.0)
        for z, y, x in centres.round().long().tolist():
            self.logits[0, 0, z, y, x] = 2.2

    def forward(self, image: torch.Tensor) -> DetectorOutput:
        assert image.shape[2:] == self.logits.shape[2:]
        return DetectorOutput(self.logits)


def test_a_perfect_network_finds_every_nodule_at_its_place_in_the_world(manifest: Path) -> None:
    config = config_of(manifest)
    options = config.options("pivot")
    data = build_data(config, options)
    assert data.test is not None and data.collate is not None
    batch = data.collate([data.test[0]])
    scan = batch["scan"]
    network = DetectorModel(Oracle(tuple(scan["image"].shape), scan["centers"]))
    found = pd.DataFrame(search(network, batch, options, None))
    nodules, marks = (found[found["kind"] == kind] for kind in ("nodule", "candidate"))
    assert len(nodules) == len(marks) > 0 and (found["kind"] == "scan").sum() == 1
    row = next(row for row in read_manifest(manifest) if row.series == batch["sample_id"][0])
    worlds = {tuple(round(v, 6) for v in nodule.world) for nodule in row.nodules}
    assert {tuple(round(v, 6) for v in world) for world in nodules[["x", "y", "z"]].to_numpy().tolist()} == worlds
    for world in nodules[["x", "y", "z"]].to_numpy():
        # Half a voxel of 2.5 mm along each axis.
        assert (((marks[["x", "y", "z"]] - world) ** 2).sum(axis=1) ** 0.5).min() <= 0.87 * 2.5


def test_inference_options_count_in_the_evaluation(manifest: Path) -> None:
    def marks(**inference: Any) -> int:
        config = config_of(manifest, {"inference": inference})
        options = config.options("pivot")
        data = build_data(config, options)
        assert data.test is not None and data.collate is not None
        batch = data.collate([data.test[0]])
        network = DetectorModel(Oracle(tuple(batch["scan"]["image"].shape), batch["scan"]["centers"]))
        return search(network, batch, options, None)["kind"].count("candidate")

    assert marks(top_k=1) == 1 and marks(min_confidence=0.95) == 0 and marks() > 1


def test_the_table_holds_scans_findings_and_candidates(trained: tuple[Path, Evaluation], manifest: Path) -> None:
    out, evaluation = trained
    table = pd.read_parquet(out / "split-0" / "evaluation-test" / "predictions.parquet")
    rows = [row for row in read_manifest(manifest) if row.split == "test"]
    assert (table["kind"] == "scan").sum() == len(rows)
    assert (table["kind"] == "nodule").sum() == sum(len(row.nodules) for row in rows)
    assert table["sample_id"].is_unique
    assert evaluation.group == "test" and table.loc[table["kind"] == "candidate", "score"].between(0, 1).all()


def test_the_report_shows_the_curve_and_the_untrained_network(trained: tuple[Path, Evaluation]) -> None:
    out, evaluation = trained
    folder = out / "split-0" / "evaluation-test"
    page = (folder / "report.html").read_text()
    assert "FROC" in page and "Before training" in page and "no medical finding" in page
    assert (folder / "plots" / "froc.png").is_file()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["metrics"]["untrained_cpm"] == evaluation.details["untrained"]["cpm"]
    assert metrics["details"]["detection"]["protocol"] == "luna16"
    assert metrics["details"]["intervals"]["cpm"][0] <= metrics["metrics"]["cpm"]


def test_untrained_is_left_out_unless_asked_for(trained: tuple[Path, Evaluation]) -> None:
    out, evaluation = trained
    again = Trainer.from_maps(out, assignments=["plugins.pivot.evaluation.untrained=false"]).evaluate("test")
    assert "untrained_cpm" not in again.metrics and "untrained" not in again.details
    assert again.metrics["cpm"] == evaluation.metrics["cpm"]


def test_training_patches_stand_for_their_scans(trained: tuple[Path, Evaluation], manifest: Path) -> None:
    out, _ = trained
    evaluation = Trainer.from_maps(out).evaluate("train")
    scans = {row.series for row in read_manifest(manifest) if row.split == "train"}
    assert evaluation.group == "train"
    assert set(evaluation.rows["series"][evaluation.rows["kind"] == "scan"]) == scans


def test_a_scan_is_predicted_with_the_runs_own_transforms(trained: tuple[Path, Evaluation], manifest: Path) -> None:
    out, evaluation = trained
    row = next(row for row in read_manifest(manifest) if row.split == "test")
    table = Trainer.from_maps(out).predict(Path(row.image))
    rows = evaluation.rows
    own = (rows["kind"] == "candidate") & (rows["series"] == row.series)
    assert len(table) == own.sum()


def test_losses_can_be_left_out(tmp_path: Path, manifest: Path) -> None:
    options = {"evaluation": {"loss_patches": 0}}
    trainer = Trainer(tmp_path / "run", config=config_of(manifest, options))
    trainer.train()
    assert "loss" not in trainer.evaluate("validation").metrics


def test_runs_are_compared_scan_by_scan(trained: tuple[Path, Evaluation]) -> None:
    evaluation = trained[1]
    metric, errors = metrics_of(options_of({}))
    rows = evaluation.rows
    # A run that marked the nodules themselves, on one scan less, its rows in another order.
    kept = (rows["kind"] != "candidate") & (rows["series"] != rows["series"][0])
    perfect = {name: column[kept] for name, column in rows.items()}
    marks = {name: column[perfect["kind"] == "nodule"].copy() for name, column in perfect.items()}
    marks["kind"][:] = "candidate"
    marks["score"][:] = 0.9
    perfect = {name: np.concatenate([perfect[name], marks[name]])[::-1] for name in perfect}
    tables = {"perfect": perfect, "trained": rows}
    (unit,) = metric.compare(tables, dict.fromkeys(tables, metric), 0, 50).units
    assert unit.counts["scans"] == len(set(rows["series"])) - 1
    score = unit.scores["cpm"]["perfect"]
    assert (score.value, score.low, score.high) == (1.0, 1.0, 1.0)
    assert unit.differences["cpm"][0].value == pytest.approx(1 - unit.scores["cpm"]["trained"].value)
    (unit,) = errors.compare(tables, dict.fromkeys(tables, errors), 0, 50).units
    assert unit.scores["centre_error_median"]["perfect"].value == 0
    perfect["x"] = perfect["x"] + 1
    with pytest.raises(DataError, match="annotations"):
        metric.compare(tables, dict.fromkeys(tables, metric), 0, 50)
