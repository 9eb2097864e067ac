"""Several splits in one run directory, and what they come to together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from medtrain import BatchMetric, Trainer
from medtrain.config import Layers
from medtrain.errors import DataError
from medtrain.plugins import Plugins
from medtrain.protocols.metric import Evaluation
from medtrain.rundir import METRICS, PREDICTIONS, read_json, read_predictions
from medtrain.rundir.directory import Maps
from medtrain.statistics import spread
from medtrain_plugins.results.folds import (
    across_folds,
    average,
    average_predictions,
    evaluate_folds,
    pool,
)
from medtrain_plugins.results.folds import write_folds as write
from scipy import stats

TOY = "medtrain.testing:ToyTask"


def read_evaluations(maps: Maps, group: str) -> dict[int, Evaluation]:
    """The written evaluations of a group, by split; DataError when a split has none."""
    found = {}
    for folder in maps.splits():
        where = folder.evaluation(group)
        if not (where / METRICS).is_file():
            raise DataError(f"{folder.path}: group {group!r} has not been evaluated")
        described = read_json(where / METRICS)
        read = read_predictions(where / f"{PREDICTIONS}.parquet")
        if read is None:
            raise DataError(f"{where}: the predictions do not tell their shapes; evaluate again")
        values = {name: math.nan if value is None else value for name, value in described["metrics"].items()}
        found[folder.number] = Evaluation(group, values, read[0], described["undefined"], described["details"])
    return found


def config(*assignments: str) -> Any:
    layers = Layers()
    layers.add({"run": {"plugins": [TOY]}, "optimization": {"num_epochs": 1}, "data": {"num_folds": 3}}, "test")
    for assignment in assignments:
        layers.add_assignment(assignment, [TOY])
    return layers.build(Plugins.of([TOY]).options())


def test_mean_spread_and_interval() -> None:
    values = [0.7, 0.8, 0.95, math.nan]
    found = spread(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values[:3]), scale=stats.sem(values[:3]))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(np.mean(values[:3])) and found.sd == pytest.approx(np.std(values[:3], ddof=1))
    assert found.folds == 3 and math.isnan(spread([0.5]).low) and spread([]).folds == 0


def rows(ids: list[str], score: list[float], label: list[int]) -> Any:
    return {"sample_id": np.array(ids, dtype=object), "logits": np.array(score), "label": np.array(label)}


def test_predictions_are_pooled_or_averaged_but_never_confused() -> None:
    one, other = rows(["a", "b"], [1.0, 3.0], [0, 1]), rows(["b", "a"], [5.0, -1.0], [1, 0])
    assert average([one, other])["logits"].tolist() == [0.0, 4.0]
    assert average([one, other])["label"].tolist() == [0, 1]
    with pytest.raises(DataError, match="the folds share samples"):
        pool([one, other])
    apart = rows(["c"], [2.0], [1])
    assert pool([one, apart])["sample_id"].tolist() == ["a", "b", "c"]
    with pytest.raises(DataError, match="scored different samples"):
        average([one, apart])
    with pytest.raises(DataError, match="disagree on 'label'"):
        average([one, rows(["a", "b"], [1.0, 2.0], [1, 1])])
    made = across_folds(
        "test",
        {0: Evaluation("test", {"accuracy": 0.5}, one), 1: Evaluation("test", {"accuracy": 1.0}, other)},
        [BatchMetric("accuracy", lambda x, y: ((x > 0) == (y > 0)).float().mean(), "logits", "label")],
    )
    assert made.spread["accuracy"].mean == 0.75 and made.pooled is None and "share samples" in made.notes["pooled"]
    assert made.ensemble is not None and made.ensemble.metrics == {"accuracy": 1.0}
    assert made.to_json()["ensemble"] == {"accuracy": 1.0}


def test_tables_of_predictions_are_averaged() -> None:
    one = pd.DataFrame({"file": ["a"], "p": [0.2], "n": [3]})
    assert average_predictions([one, one.assign(p=0.4)]).to_dict("list") == {
        "file": ["a"],
        "p": [pytest.approx(0.3)],
        "n": [3],
    }
    assert list(average_predictions([one, one.assign(n=4)]).columns) == ["file", "p"]
    with pytest.raises(DataError, match="different shape"):
        average_predictions([one, one.drop(columns="p")])


def test_folds_of_one_run(tmp_path: Path) -> None:
    settings = config()
    for index in (2, 0, 1):  # any order, each by a Trainer of its own, as the jobs of an array
        Trainer(tmp_path / "run", config=settings).train(index)
    maps = Maps.open(tmp_path / "run")
    members = [folder.membership()["groups"] for folder in maps.splits()]
    validated = [set(groups["validation"]["participants"]) for groups in members]
    assert len(set().union(*validated)) == sum(map(len, validated)) == 11
    assert all(groups["test"] == members[0]["test"] for groups in members)
    assert not any(set(groups["train"]["participants"]) & held for groups, held in zip(members, validated, strict=True))
    trainer = Trainer.from_maps(tmp_path / "run")
    results = evaluate_folds(trainer, "validation")
    assert results.pooled is not None and len(results.pooled.rows["sample_id"]) == 22
    assert results.ensemble is None
    tested = evaluate_folds(trainer, "test")
    assert tested.ensemble is not None and len(tested.ensemble.rows["sample_id"]) == 2
    folder = write(maps, tested, "toy")
    kept = json.loads((folder / "folds.json").read_text())
    assert kept["spread"]["accuracy"]["folds"] == 3 and (folder / "ensemble.csv").is_file()
    assert "Over the folds" in (folder / "report.html").read_text()
    again = read_evaluations(maps, "test")
    assert {n: e.metrics["accuracy"] for n, e in again.items()} == {n: v["accuracy"] for n, v in tested.by_fold.items()}
    with pytest.raises(DataError, match="has not been evaluated"):
        read_evaluations(maps, "train")


def test_a_fold_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no split 3: data\.num_folds = 3"):
        Trainer(tmp_path / "run", config=config()).train(3)
    with pytest.raises(DataError, match="these data come in groups already"):
        layers = Layers()
        layers.add({"run": {"plugins": ["toy_plugin"]}, "data": {"num_folds": 3}}, "test")
        Trainer(tmp_path / "run", config=layers.build(Plugins.of(["toy_plugin"]).options())).train(0)
    assert not (tmp_path / "run").exists()


def test_folds_from_tables(tmp_path: Path) -> None:
    from medtrain import make_kfold
    from medtrain.testing import ToyVolumes

    volumes = ToyVolumes(24)
    table = pd.DataFrame({"participant_id": volumes.participants, "session_id": "ses-1"}).drop_duplicates()
    folder = make_kfold(table, n_splits=4, output_dir=tmp_path, seed=2) or tmp_path / "4_fold"
    settings = config("data.num_folds=0", f"data.splits={folder}")
    trainer = Trainer(tmp_path / "run", config=settings)
    assert trainer.count_splits() == 4
    trainer.train(3)
    groups = Maps.open(tmp_path / "run").split(3).membership()["groups"]
    named = set(pd.read_csv(Path(folder) / "split-3" / "validation_baseline.tsv", sep="\t")["participant_id"])
    assert set(groups["validation"]["participants"]) == named and "test" not in groups
