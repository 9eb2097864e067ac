"""Runs of the toy compared: what is shared, what is drawn, what is refused, what is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from medtrain import BatchMetric, Data, Trainer, Undefined, hookimpl
from medtrain.errors import DataError, PluginError, UsageError
from medtrain.protocols.comparison import Unit
from medtrain.rundir.evaluation_files import predictions, read_predictions
from medtrain_plugins.results.compare import (
    compare_runs,
    compare_samples,
    differences_figure,
    differences_table,
    scores_table,
    values_figure,
    write_comparison,
)

Toy = Callable[..., Path]


@pytest.fixture
def pair(toy_run: Toy) -> list[Path]:
    """One run that learns and one that does not, on the same data."""
    learning = ("optimization.learning_rate=0.05", "optimization.num_epochs=8", "toy_plugin.test=60")
    return [toy_run(*learning, name="good"), toy_run("toy_plugin.test=60", "run.seed=3", name="poor")]


def test_runs_are_evaluated_first_and_compared_with_limits(pair: list[Path], tmp_path: Path) -> None:
    compared = compare_runs(pair, replicates=200, seed=1)
    (unit,) = compared.units
    assert unit.counts == {"samples": 60, "participants": 60}
    for path, name in zip(pair, ("good", "poor"), strict=True):
        metrics = json.loads((path / "split-0" / "evaluation-test" / "metrics.json").read_text())
        score = unit.scores["fit"][name]
        assert score.value == metrics["metrics"]["fit"] and score.low < score.value < score.high and score.valid == 200
    (difference,) = unit.differences["fit"]
    assert (difference.first, difference.second) == ("good", "poor")
    assert difference.value == pytest.approx(unit.scores["fit"]["good"].value - unit.scores["fit"]["poor"].value)
    assert 0 < difference.low < difference.value < difference.high and difference.p == pytest.approx(2 / 201)

    write_comparison(tmp_path / "out", compared)
    text = (tmp_path / "out" / "comparison.json").read_text()
    told = json.loads(text)
    assert (told["group"], told["seed"], told["replicates"]) == ("test", 1, 200)
    assert [run["name"] for run in told["runs"]] == ["good", "poor"]
    assert told["runs"][0]["checkpoint"] == "best-fit" and told["runs"][0]["status"] == "completed"
    assert told["comparisons"][0]["drawn_by"] == "participant"
    assert told["comparisons"][0]["units"]["sample"]["differences"]["fit"][0]["p"] == difference.p
    plots = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    assert plots == {"values_sample.png", "differences_sample.png"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "good" in page and "http://" not in page
    write_comparison(tmp_path / "again", compare_runs(pair, replicates=200, seed=1))
    assert (tmp_path / "again" / "comparison.json").read_text() == text
    assert (tmp_path / "again" / "report.html").read_text() == page


def test_an_evaluation_is_used_until_its_checkpoint_goes_on(toy_run: Toy, caplog: pytest.LogCaptureFixture) -> None:
    paths = [toy_run(name=name) for name in ("a", "b")]
    caplog.set_level("INFO", "medtrain")
    compare_runs(paths, replicates=5)
    assert [record.message.split()[0] for record in caplog.records] == ["Evaluating", "Evaluating"]
    caplog.clear()
    first = compare_runs(paths, replicates=5)
    assert not caplog.records
    Trainer.from_maps(paths[0], assignments=["optimization.num_epochs=6"]).resume()
    second = compare_runs(paths, replicates=5)
    assert [str(paths[0]) in record.message for record in caplog.records] == [True]
    assert second.runs[0].facts["step"] > first.runs[0].facts["step"]
    # What was deliberately evaluated from another checkpoint is what is compared.
    chosen = Trainer.from_maps(paths[1])
    chosen.evaluate(checkpoint="last")
    chosen.report()
    assert compare_runs(paths, replicates=5).runs[1].facts["checkpoint"] == "last"


def test_only_shared_samples_count(toy_run: Toy) -> None:
    paths = [toy_run("toy_plugin.test=30", name="many"), toy_run("toy_plugin.test=12", name="few")]
    compared = compare_runs(paths, replicates=20)
    assert compared.units[0].counts["samples"] == 12
    assert [run.facts["samples"] for run in compared.runs] == [30, 12]


def test_what_cannot_be_compared_is_said(toy_run: Toy, tmp_path: Path) -> None:
    path = toy_run(name="a")
    with pytest.raises(UsageError, match="is named twice"):
        compare_runs([path, tmp_path / "." / "a"])
    with pytest.raises(UsageError, match=r"not a run directory"):
        compare_runs([path, tmp_path / "nothing"])
    with pytest.raises(UsageError, match="there is no split 1; there are: 0"):
        compare_runs([path], split=1)
    with pytest.raises(DataError, match="there is no group 'tset'"):
        compare_runs([path], group="tset")


def test_one_name_for_two_folders_becomes_the_paths(toy_run: Toy) -> None:
    paths = [toy_run(name="x/run"), toy_run(name="y/run")]
    assert [run.name for run in compare_runs(paths, replicates=2).runs] == [str(path) for path in paths]


def test_undefined_values_have_reasons_and_the_page_is_still_written(toy_run: Toy, tmp_path: Path) -> None:
    paths = [toy_run("toy_plugin.undefined=true", name="a"), toy_run(name="b")]
    compared = compare_runs(paths, replicates=5)
    (difference,) = compared.units[0].differences["fit"]
    assert math.isnan(difference.p) and difference.reason == "a: no label is known"
    write_comparison(tmp_path / "out", compared)
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert told["comparisons"][0]["units"]["sample"]["scores"]["fit"]["a"]["value"] is None
    assert "no label is known" in (tmp_path / "out" / "report.html").read_text()


class Vectors:
    """Three samples of each participant."""

    def __init__(self, first: int, count: int) -> None:
        self.participants = [f"p{first + i // 3}" for i in range(count)]
        self.sample_ids = [f"s{first}-{i}" for i in range(count)]
        generator = torch.Generator().manual_seed(first)
        self.x = torch.randn(count, 4, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "y": self.x[index].sum(), "sample_id": self.sample_ids[index]}


def absolute_error(prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (prediction - truth).abs().mean()


class Own:
    """A task of its own, whose metrics a test gives."""

    metrics: Any = staticmethod(lambda data: [BatchMetric("error", absolute_error, "p", "y", "min")])
    bias = 0.0

    @hookimpl
    def build_data(self) -> Data:
        return Data(train=Vectors(0, 30), validation=Vectors(100, 9), test=Vectors(200, 30))

    @hookimpl
    def build_model(self) -> Any:
        class Model(torch.nn.Linear):
            def forward(self, batch: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
                return {"p": super().forward(batch["x"])[:, 0]}

        return Model(4, 1)

    @hookimpl
    def build_loss(self) -> Any:
        return lambda outputs, batch: ((outputs["p"] - batch["y"]) ** 2).mean()

    @hookimpl
    def build_metrics(self, data: Data) -> Any:
        return type(self).metrics(data)


def own_plugin(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> str:
    """`Own`, changed, as an importable plugin."""
    import sys
    import types

    module = types.ModuleType(name)
    module.Own = type("Own", (Own,), attributes)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    return f"{name}:Own"


def run_of(plugin: str, path: Path, seed: int = 0) -> Path:
    made = Trainer(path, plugins=[plugin])
    made.config.run.seed = seed
    made.config.optimization.num_epochs = 1
    return made.train().maps


def test_participants_are_drawn_not_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = own_plugin("own_participants", tmp_path, monkeypatch)
    compared = compare_runs([run_of(plugin, tmp_path / str(seed), seed) for seed in (0, 1)], replicates=50)
    assert compared.units[0].counts == {"samples": 30, "participants": 10}
    assert compared.units[0].scores["error"]["0"].value > 0


def test_metrics_that_need_data_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def needing(data: Data) -> Any:
        return [BatchMetric(f"error_{len(data.train)}", absolute_error, "p", "y", "min")]  # type: ignore[arg-type]

    path = run_of(own_plugin("own_needing", tmp_path, monkeypatch, metrics=staticmethod(needing)), tmp_path / "run")
    with pytest.raises(PluginError, match=r"cannot build its metrics from the record of the run .*Data\.about"):
        compare_runs([path])


def test_metrics_not_every_run_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_run: Toy) -> None:
    def two(data: Data) -> Any:
        bias = BatchMetric("bias", lambda p, y: (p - y).mean(), "p", "y")
        return [BatchMetric("error", absolute_error, "p", "y", "min"), bias]

    paths = [
        run_of(own_plugin("own_one", tmp_path, monkeypatch), tmp_path / "one"),
        run_of(own_plugin("own_two", tmp_path, monkeypatch, metrics=staticmethod(two)), tmp_path / "two"),
    ]
    compared = compare_runs(paths, replicates=5)
    assert list(compared.units[0].scores) == ["error"] and compared.skipped == ["bias"]
    with pytest.raises(DataError, match="no metric in common: one has error; run has fit"):
        compare_runs([paths[0], toy_run()])


def test_a_metric_may_compare_in_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medtrain.protocols.comparison import Comparison

    class Careful(BatchMetric):
        def compare(self, tables: Any, metrics: Any, seed: int, replicates: int) -> Comparison:
            assert list(tables) == list(metrics) == ["0", "1"] and metrics["0"] is self
            assert all(len(rows["sample_id"]) == 30 for rows in tables.values())
            draws = {"error": {run: np.arange(3.0) for run in tables}}
            return Comparison([Unit.of("pair", {"pairs": 7}, {"error": dict.fromkeys(tables, 1.0)}, draws)], {"x": 1})

    def careful(data: Data) -> Any:
        return [Careful("error", absolute_error, "p", "y", "min")]

    plugin = own_plugin("own_careful", tmp_path, monkeypatch, metrics=staticmethod(careful))
    compared = compare_runs([run_of(plugin, tmp_path / str(seed), seed) for seed in (0, 1)])
    assert compared.to_json()["comparisons"][0]["x"] == 1 and compared.units[0].name == "pair"


def table(values: Any, truth: Any, ids: Any = None) -> dict[str, Any]:
    ids = [f"s{i}" for i in range(len(values))] if ids is None else ids
    return {"sample_id": np.array(ids, dtype=object), "p": np.array(values), "y": np.array(truth)}


def test_other_labels_or_no_shared_sample_are_refused() -> None:
    metric = {run: BatchMetric("error", absolute_error, "p", "y", "min") for run in "ab"}
    with pytest.raises(DataError, match=r"1 samples have another 'y' in b than in a \(first: s1\)"):
        compare_samples({"a": table([1.0, 2], [1.0, 2]), "b": table([1.0, 2], [1.0, 3])}, [metric], None, 0, 5)
    with pytest.raises(DataError, match=r"no sample of this group in common \(a 1, b 1 samples\)"):
        compare_samples({"a": table([1.0], [1.0]), "b": table([1.0], [1.0], ["t"])}, [metric], None, 0, 5)


def test_the_order_of_rows_does_not_matter_and_draws_are_paired() -> None:
    rng = np.random.default_rng(0)
    truth, noise = rng.normal(size=200), rng.normal(size=200)
    metric = {run: BatchMetric("error", absolute_error, "p", "y", "min") for run in "ab"}
    ids = [f"s{i}" for i in range(200)]
    turned = table((truth + 1.02 * noise)[::-1], truth[::-1], ids[::-1])
    (unit,) = compare_samples({"a": table(truth + noise, truth, ids), "b": turned}, [metric], None, 0, 300).units
    (difference,) = unit.differences["error"]
    assert difference.value == pytest.approx(-0.02 * np.abs(noise).mean())
    # The same draws for both: the difference is known fifty times better than either value.
    score = unit.scores["error"]["a"]
    assert difference.high - difference.low == pytest.approx(0.02 * (score.high - score.low), rel=1e-6)
    assert difference.p == pytest.approx(2 / 301)


def test_limits_of_copied_samples_are_those_of_participants() -> None:
    rng = np.random.default_rng(1)
    truth, guess = rng.normal(size=60), rng.normal(size=60)
    metric = {"a": BatchMetric("error", absolute_error, "p", "y", "min")}

    def width(copies: int, clustered: bool) -> float:
        rows = table(np.repeat(guess, copies), np.repeat(truth, copies))
        owners = {sample: str(i // copies) for i, sample in enumerate(rows["sample_id"])} if clustered else None
        score = compare_samples({"a": rows}, [metric], owners, 0, 400).units[0].scores["error"]["a"]
        return score.high - score.low

    assert width(4, True) == pytest.approx(width(1, False), rel=0.1)
    assert width(4, False) == pytest.approx(width(1, False) / 2, rel=0.15)


def test_draws_without_a_value_are_left_out_and_counted() -> None:
    class Picky:
        names, mode = ("rate",), "max"

        def rows(self, outputs: Any, batch: Any) -> Any: ...

        def compute(self, rows: Any) -> dict[str, float]:
            if not rows["y"].any():
                raise ValueError("only one class")
            return {"rate": float(rows["p"][rows["y"] > 0].mean())}

    rows = table([0.5, 0.2, 0.3], [1, 0, 0])
    score = compare_samples({"a": rows}, [{"a": Picky()}], None, 0, 200).units[0].scores["rate"]["a"]  # type: ignore[dict-item]
    assert score.value == 0.5 and 0.6 * 200 < score.valid < 0.8 * 200
    with pytest.raises(ValueError, match="one class"):
        compare_samples({"a": table([0.5], [0])}, [{"a": Picky()}], None, 0, 2)  # type: ignore[dict-item]


def test_tables_and_figures_of_many_runs_and_missing_values() -> None:
    runs = [f"run-{i}" for i in range(4)]
    values: Any = {"a": {run: 0.5 + i / 10 for i, run in enumerate(runs)}, "b": dict.fromkeys(runs, Undefined("no b"))}
    draws = {name: {run: np.random.default_rng(i).random(50) for i, run in enumerate(runs)} for name in values}
    unit = Unit.of("exam", {"exams": 5}, values, draws)
    scores, differences = scores_table(unit), differences_table(unit)
    assert list(scores["metric"]) == ["a", "b"] and scores.loc[1, "run-3"] == "–" and scores.loc[1, "note"] == "no b"
    assert len(differences) == 12 and differences.loc[6, "note"] == "run-0: no b"
    assert len(values_figure(unit).axes) == len(differences_figure(unit).axes) == 2
    assert len(differences_figure(unit).axes[0].get_yticklabels()) == 6


def test_rows_survive_the_predictions_file(tmp_path: Path) -> None:
    rows = {
        "sample_id": np.array(["a", "b"], dtype=object),
        "risk": np.arange(4, dtype=np.float32).reshape(2, 2),
        "one": np.ones((2, 1)),
        "map": np.arange(8).reshape(2, 2, 2),
    }
    predictions(rows).to_parquet(tmp_path / "p.parquet", index=False)
    found = read_predictions(tmp_path / "p.parquet")
    assert found is not None and found[1] is None
    for name, values in found[0].items():
        np.testing.assert_array_equal(values, rows[name])
        assert values.dtype == rows[name].dtype and values.shape == rows[name].shape
    pd.DataFrame({"sample_id": ["a"], "risk_1": [0.5]}).to_parquet(tmp_path / "other.parquet")
    assert read_predictions(tmp_path / "other.parquet") is None
