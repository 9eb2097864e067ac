"""`pivot` trains: every task's loss falls, a resumed run is the same run, stages and data options do what they say."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import medtrain_plugins.nodule
import numpy as np
import pytest
import torch
from medtrain import Run, Trainer, hookimpl
from medtrain.config import Layers
from medtrain.data import Data
from medtrain.errors import ConfigError, DataError
from medtrain.plugins import Plugins
from medtrain.rundir.checkpoint import load_model_file
from medtrain.rundir.directory import Maps
from medtrain.training.loaders import make_loader
from medtrain_plugins.nodule.data.groups import SCAN, build_data, choose_starts, find_groups, sampling_of
from medtrain_plugins.nodule.scans.manifest import read_manifest, write_manifest
from medtrain_plugins.nodule.synthetic.synth import synthesize
from pivot_runs import SCANS, config_of, make_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_manifest(tmp_path_factory.mktemp("scans"))


def data_of(manifest: Path | None, options: dict[str, Any] | None = None, **sections: Any) -> Data:
    config = config_of(manifest, options, **sections)
    return build_data(config, config.options("pivot"))


def train(out: Path, manifest: Path, options: dict[str, Any] | None = None, *watch: Any, **sections: Any) -> Maps:
    trainer = Trainer(out, callbacks=list(watch), config=config_of(manifest, options, **sections))
    trainer.train()
    return Maps.open(out)


class Seen:
    """Patch and batch shapes, learning rates, factors and parameters by epoch."""

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.factors: dict[int, float] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    @hookimpl
    def on_epoch_start(self, run: Run) -> None:
        assert run.data is not None and run.data.train is not None
        self.shapes[run.epoch] = tuple(run.data.train[0]["image"].shape[1:])

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        self.factors[run.epoch] = run.loss.factors.get("triage", 1.0)
        self.weights[run.epoch] = {name: p.detach().clone() for name, p in run.model.named_parameters()}


def test_every_loss_falls_and_scans_are_searched(tmp_path: Path, manifest: Path) -> None:
    options = {
        "sampling": {"positive_fraction": 1.0, "jitter": 0.1, "patches_per_volume": 8},
        "model": {"base_filters": 4},
        "evaluation": {"detection_every": 3},
    }
    maps = train(tmp_path / "run", manifest, options, data={"batch_size": 8}, optimization={"num_epochs": 6})
    history = maps.split(0).history()
    for term in ("loss", "loss_heatmap", "loss_offset", "loss_log_diameter", "loss_triage"):
        assert np.mean([r[f"train/{term}"] for r in history[-2:]]) < history[0][f"train/{term}"], term
    # The loss comes every epoch, the search when it is due.
    assert all(record["validation/loss"] is not None for record in history)
    assert [record["validation/cpm"] is not None for record in history] == [False, False, True] * 2
    assert "detection_every" in history[0]["undefined"]["validation/cpm"]
    assert maps.split(0).status()["best"]["name"] == "cpm"


def test_a_resumed_run_is_the_same_run(tmp_path: Path, manifest: Path) -> None:
    whole = train(tmp_path / "whole", manifest, optimization={"num_epochs": 4})
    train(tmp_path / "parts", manifest, optimization={"num_epochs": 4}, checkpoint={"every_n_epochs": 2})
    Trainer(tmp_path / "parts", config=Trainer.from_maps(tmp_path / "parts").config).resume(0, "epoch-0002")
    weights = [
        load_model_file(maps.split(0).checkpoint("last") / "model.safetensors")
        for maps in (whole, Maps.open(tmp_path / "parts"))
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_stages_have_their_own_patches_batches_and_nodules(tmp_path: Path, manifest: Path) -> None:
    seen = Seen()
    train(
        tmp_path / "run",
        manifest,
        None,
        seen,
        stages=[
            {"epochs": 1, "patch_size": [8, 8, 8], "batch_size": 2, "filter": {"min_diameter": 10.0}},
            {"epochs": 1, "patch_size": [16, 16, 16]},
        ],
        optimization={"num_epochs": 2, "evaluation_interval": 0},
    )
    assert seen.shapes == {0: (8, 8, 8), 1: (16, 16, 16)}


def test_frozen_parts_rest_until_their_epoch(tmp_path: Path, manifest: Path) -> None:
    seen = Seen()
    train(
        tmp_path / "run",
        manifest,
        None,
        seen,
        optimization={"num_epochs": 3, "evaluation_interval": 0},
        transfer={"freeze": ["backbone.encoders.*"], "freeze_epochs": 2},
    )
    encoder = next(name for name in seen.weights[0] if name.startswith("backbone.encoders.") and "conv" not in name)
    assert torch.equal(seen.weights[0][encoder], seen.weights[1][encoder])
    assert not torch.equal(seen.weights[1][encoder], seen.weights[2][encoder])
    other = next(name for name in seen.weights[0] if name.startswith("heads."))
    assert not torch.equal(seen.weights[0][other], seen.weights[1][other])


def test_scheduled_weights_follow_the_epochs(tmp_path: Path, manifest: Path) -> None:
    seen = Seen()
    options = {"loss": {"weighting": "scheduled", "schedule": {"triage": [[0, 0.0], [2, 1.0]]}}}
    train(tmp_path / "run", manifest, options, seen, optimization={"num_epochs": 3, "evaluation_interval": 0})
    assert seen.factors == {0: 0.0, 1: 0.5, 2: 1.0}


def test_accumulated_small_batches_are_one_large_one(tmp_path: Path, manifest: Path) -> None:
    """Mined, masked and soft targets included: the weights of a window are known beforehand."""
    options = {"loss": {"hard_negative_mining": {"enabled": True}}}
    found = []
    for name, batch, steps in (("large", 4, 1), ("small", 2, 2)):
        maps = train(
            tmp_path / name,
            manifest,
            options,
            data={"batch_size": batch},
            optimization={"optimizer": "SGD", "accumulation_steps": steps, "max_steps": 2, "evaluation_interval": 0},
        )
        found.append(load_model_file(maps.split(0).checkpoint("last") / "model.safetensors"))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-6)


def test_curriculum_aims_at_large_nodules_and_ignores_the_others(manifest: Path) -> None:
    config = config_of(manifest, stages=[{"epochs": 1, "filter": {"min_diameter": 12.0}}])
    options = config.options("pivot")
    staged = build_data(config.for_stage(config.stages[0]), options)
    for points in staged.train.points:  # type: ignore[union-attr]
        assert (points.diameters >= 12).all() and (points.ignored_diameters[: points.filtered] < 12).all()
    plain = build_data(config, options)
    assert sum(len(p.centres) for p in plain.train.points) > sum(len(p.centres) for p in staged.train.points)  # type: ignore[union-attr]


@pytest.mark.parametrize("stage", [{"filter": {"min_size": 3}}, {"patch_size": [8, 8]}])
def test_stages_that_cannot_be_are_refused(manifest: Path, stage: dict[str, Any]) -> None:
    config = config_of(manifest, stages=[{"epochs": 1, **stage}])
    with pytest.raises(ConfigError, match="stages"):
        sampling_of(config.for_stage(config.stages[0]), config.options("pivot"))


def test_patches_follow_the_options(manifest: Path) -> None:
    data = data_of(manifest, {"sampling": {"patch_size": [8, 16, 24], "patches_per_volume": 5}})
    assert data.train is not None and data.train[0]["image"].shape == (1, 8, 16, 24)
    assert len(data.train) == 5 * len(data.train.rows)  # type: ignore[attr-defined]
    changed = {
        "positive_fraction": 0.25,
        "jitter": 0.1,
        "nodules_in_negatives": True,
        "min_diameter": 5.0,
        "max_diameter": 15.0,
    }
    sampling = data_of(manifest, {"sampling": changed}).train.sampling  # type: ignore[union-attr]
    assert {name: getattr(sampling, name) for name in changed} == changed


def test_positive_patches_are_as_many_as_asked(manifest: Path) -> None:
    for fraction in (0.0, 1.0):
        data = data_of(manifest, {"sampling": {"positive_fraction": fraction, "patches_per_volume": 10}})
        assert data.train is not None
        torch.manual_seed(0)
        share = np.mean([bool(data.train[i]["is_positive"]) for i in range(len(data.train))])
        assert share == 1.0 if fraction else share < 0.3


def test_hard_negatives_of_an_earlier_run_are_seen_again(tmp_path: Path, manifest: Path) -> None:
    row = next(row for row in read_manifest(manifest) if row.split == "train")
    corner = row.geometry.to_world([[4.0, 4.0, 4.0]])[0]
    path = tmp_path / "candidates.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["seriesuid", "coordX", "coordY", "coordZ", "probability"],
                [row.series, *corner.tolist(), 0.9],
                [row.series, *row.geometry.to_world([[28.0, 40.0, 40.0]])[0].tolist(), 0.1],
            ]
        )
    chosen = {"hard_negatives": str(path), "hard_negative_fraction": 1.0, "hard_negative_score": 0.5, "jitter": 0.0}
    data = data_of(manifest, {"sampling": {"positive_fraction": 0.0, "patch_size": [8, 8, 8], **chosen}})
    assert data.train is not None
    index = [r.series for r in data.train.rows].index(row.series) * 2  # type: ignore[attr-defined]
    assert all(data.train[index]["start"].tolist() == [0, 0, 0] for _ in range(12))
    assert sampling_of(config_of(manifest), config_of(manifest).options("pivot")).hard_negative_fraction == 0.0
    with pytest.raises(DataError, match="no wrong candidate"):
        data_of(manifest, {"sampling": {**chosen, "hard_negative_score": 1.0}})


def test_augmentation_is_on_unless_switched_off(manifest: Path) -> None:
    def patches(options: dict[str, Any]) -> torch.Tensor:
        data = data_of(manifest, {"sampling": {"jitter": 0.0, "positive_fraction": 1.0}, **options})
        torch.manual_seed(1)
        assert data.train is not None
        return torch.stack([data.train[i]["image"] for i in range(4)])

    assert not torch.equal(patches({"augmentation": {"enabled": True}}), patches({}))


def test_window_maps_hounsfield_units(manifest: Path) -> None:
    image = data_of(manifest, {"window": [-1350.0, 150.0]}).train[0]["image"]  # type: ignore[index]
    assert image.min() >= 0 and image.max() <= 1
    air = data_of(manifest, {"window": [-1350.0, 150.0]}).validation[0][SCAN]["image"].min()  # type: ignore[index]
    assert air == pytest.approx((350 - 100) / 1500, abs=0.1) and air > 0.1


def test_heatmap_width_and_stride_of_targets(manifest: Path) -> None:
    def heatmap(options: dict[str, Any]) -> torch.Tensor:
        data = data_of(manifest, {"sampling": {"positive_fraction": 1.0}, **options})
        torch.manual_seed(0)
        assert data.train is not None and data.collate is not None
        batch = data.collate([data.train[i] for i in range(4)])
        made: torch.Tensor = batch["heatmap"].nan_to_num()
        return made

    assert heatmap({"sigma_mm": 8.0}).sum() > 2 * heatmap({"sigma_mm": 3.0}).sum()
    assert heatmap({}).shape[2:] == (8, 8, 8)
    assert heatmap({"model": {"output_stride": 1}}).shape[2:] == (16, 16, 16)


def test_loss_patches_lie_on_the_grid_nodules_first(manifest: Path) -> None:
    few = data_of(manifest).validation[0]  # type: ignore[index]
    assert few["image"].shape == (2, 1, 16, 16, 16) and few["sample_id"]
    dense = data_of(manifest, {"sampling": {"stride": [8, 8, 8]}, "evaluation": {"loss_patches": 1000}}).validation
    starts = dense[0]["start"]  # type: ignore[index]
    assert len(starts) == 3 * 5 * 5 and set((starts % 8).flatten().tolist()) == {0}
    grid = np.array([[0, 0, 0], [0, 0, 8], [0, 0, 16], [0, 0, 24]])
    chosen = choose_starts(grid, np.array([[1.0, 1.0, 17.0]]), (8, 8, 8), 3)
    assert chosen.tolist() == [[0, 0, 16], [0, 0, 0], [0, 0, 24]]


def test_segmentation_learns_from_the_masks(tmp_path: Path, manifest: Path) -> None:
    options = {"model": {"heads": ["heatmap", "segmentation"]}}
    data = data_of(manifest, options)
    assert data.validation is not None and data.validation[0][SCAN]["mask"].sum() > 0
    history = train(tmp_path / "run", manifest, options, optimization={"num_epochs": 1}).split(0).history()
    assert history[-1]["train/loss_segmentation"] > 0 and 0 <= history[-1]["validation/segmentation_dice"] <= 1


def test_groups_come_from_the_manifest_or_are_dealt_by_patient(tmp_path: Path, manifest: Path) -> None:
    def groups(path: Path | None, options: dict[str, Any] | None = None, **sections: Any) -> dict[str, int]:
        config = config_of(path, options, **sections)
        return {name: len(rows) for name, rows in find_groups(config, config.options("pivot")).items()}

    told = groups(manifest)
    assert sum(told.values()) == SCANS and min(told.values()) > 0
    rows = read_manifest(manifest)
    loose = tmp_path / "loose.jsonl"
    write_manifest(loose, [row.model_copy(update={"split": ""}) for row in rows])
    assert groups(loose, data={"validation_fraction": 0.34, "test_fraction": 0.22}) == {
        "train": 4,
        "validation": 3,
        "test": 2,
    }
    folds = tmp_path / "folds.jsonl"
    write_manifest(folds, [row.model_copy(update={"split": "", "fold": n % 3}) for n, row in enumerate(rows)])
    assert groups(folds, {"fold": 1}) == {"train": 6, "validation": 3, "test": 0}
    with pytest.raises(ConfigError, match="fold"):
        groups(folds)
    with pytest.raises(ConfigError, match="7"):
        groups(folds, {"fold": 7})
    parts = {}
    for name in ("train", "validation", "test"):
        parts[f"{name}_data"] = str(tmp_path / f"{name}.jsonl")
        write_manifest(tmp_path / f"{name}.jsonl", [row for row in rows if row.split == name])
    assert groups(None, parts) == told
    with pytest.raises(ConfigError, match="both"):
        groups(manifest, parts)
    with pytest.raises(DataError, match="is in the"):
        groups(None, {**parts, "test_data": parts["train_data"]})


def test_a_folder_of_scans_with_its_tables_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTRAIN_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "luna"
    synthesize(source, 4, 0, shape=(32, 40, 40), spacing=(3.0, 2.5, 2.5))
    options = {"spacing": [3.0, 3.0, 3.0], "prepared": str(tmp_path / "prepared")}
    sections = {"data": {"validation_fraction": 0.25, "test_fraction": 0.25}}
    data = data_of(source, options, **sections)
    assert {name: len(dataset) for name, dataset in data.groups().items()} == {"train": 4, "validation": 1, "test": 1}
    assert list((tmp_path / "prepared").rglob("manifest.jsonl"))
    nodules = sum(data.about["nodules"].values())
    assert nodules > 0
    # Tables of other names, and half of the nodules in them.
    rows = (source / "annotations.csv").read_text().splitlines()
    (tmp_path / "own.csv").write_text("\n".join(rows[: 1 + nodules // 2]) + "\n")
    own = options | {"annotations": str(tmp_path / "own.csv"), "prepared": str(tmp_path / "again")}
    assert sum(data_of(source, own, **sections).about["nodules"].values()) == nodules // 2
    none = tmp_path / "none.csv"
    none.write_text(rows[0] + "\n")
    fewer = options | {"excluded": str(none), "prepared": str(tmp_path / "third")}
    assert not any(row.irrelevant for row in data_of(source, fewer, **sections).train.rows)  # type: ignore[union-attr]
    assert any(row.irrelevant for row in data.train.rows)  # type: ignore[union-attr]
    (source / "annotations.csv").unlink()
    with pytest.raises(ConfigError, match=r"plugins\.pivot\.annotations"):
        data_of(source, options, **sections)


def test_spacing_is_that_of_the_scans(manifest: Path) -> None:
    config = config_of(manifest)
    build_data(config, config.options("pivot"))
    assert config.options("pivot").spacing == (2.5, 2.5, 2.5)
    with pytest.raises(DataError, match="prepare them alike"):
        data_of(manifest, {"spacing": [1.0, 1.0, 1.0]})


def test_without_data_the_demo_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTRAIN_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="--data"):
        data_of(None)
    scans = {"demo_scans": 3}
    first = data_of(None, scans)
    assert sum(first.about["scans"].values()) == 3
    assert data_of(None, {**scans, "demo_seed": 1}).about["images"] != first.about["images"]
    shutil.rmtree(next(tmp_path.glob("pivot-demo-3-1-*")))
    assert data_of(None, scans).about["images"] == first.about["images"]
    assert len(list(tmp_path.glob("pivot-demo-*"))) == 1


@pytest.mark.parametrize(
    ("section", "message"),
    [({"evaluation_batch_size": 2}, "one by one"), ({"num_folds": 3}, "plugins.pivot.fold")],
)
def test_settings_that_whole_scans_do_not_allow_are_refused(
    manifest: Path, section: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        data_of(manifest, data=section)


def test_feeding_settings_reach_the_loader_and_workers_make_the_same_batches(manifest: Path) -> None:
    def loader(device: str = "cpu", **settings: Any) -> Any:
        config = config_of(manifest, data=settings)
        split = Plugins.of([]).first_result(
            "split_data", config=config, data=build_data(config, config.options("pivot"))
        )
        world = SimpleNamespace(rank=0, size=1, device=torch.device(device))
        return make_loader(config, split, "train", SimpleNamespace(world=world, augmentation=None))  # type: ignore[arg-type]

    plain = loader(num_workers=0)
    assert plain.workers is None
    fed = loader(num_workers=1, prefetch_factor=3, persistent_workers=False)
    chosen = fed.workers
    assert (chosen.num_workers, chosen.prefetch_factor, chosen.persistent_workers) == (1, 3, False)
    assert loader(num_workers=1).workers.persistent_workers and not chosen.pin_memory
    assert loader("cuda", num_workers=1).workers.pin_memory
    assert not loader("cuda", num_workers=1, pin_memory=False).workers.pin_memory
    try:
        for ours, theirs in zip(plain.epoch(3), fed.epoch(3), strict=True):
            assert torch.equal(ours.batch["image"], theirs.batch["image"])
            assert torch.equal(ours.batch["heatmap"].nan_to_num(), theirs.batch["heatmap"].nan_to_num())
    finally:
        fed.close()


def test_the_published_settings_make_a_run(manifest: Path) -> None:
    layers = Layers()
    layers.add_file(Path(medtrain_plugins.nodule.__file__).parent / "presets" / "paper.toml")
    layers.add({"run": {"plugins": ["pivot"]}, "data": {"table": str(manifest), "num_workers": 0}}, "test")
    layers.add({"plugins": {"pivot": {"model": {"base_filters": 2}}}, "computational": {"device": "cpu"}}, "test")
    told = Trainer(config=layers.build(Plugins.of(["pivot"]).options())).dry_run()
    assert told["monitor"] == "cpm (max)" and told["epochs"] == 100
