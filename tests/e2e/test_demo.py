"""The embedded demos learn what is there, and nothing where there is nothing. Prints a table; `nox -s demos`."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cohorts import move_to_test, permute_labels

pytestmark = [pytest.mark.demos, pytest.mark.timeout(3600)]

MODELS = ["lmv_net", "imgfeatalign", "oa_breacr", "mirai", "vmra_mar"]
LONGITUDINAL = MODELS[:3]
SEEDS = [0, 1, 2]
Cohorts = Callable[[str, int], Path]
PERMUTED = 560  # women of a cohort with permuted labels


@pytest.fixture(scope="module")
def cohort_of(tmp_path_factory: pytest.TempPathFactory) -> Cohorts:
    """`cohort_of(kind, seed)`: as generated with a signal (growth, change, none), or growth with permuted labels."""
    from medtrain_plugins.mammography.synthetic.synth import synthesize

    folder = tmp_path_factory.mktemp("cohorts")

    def make(kind: str, seed: int) -> Path:
        path = folder / f"{kind}-{seed}"
        if not path.exists() and kind == "permuted":
            # As many women to train on as in the demo, and more to test on: chance has to be told from a leak.
            synthesize(path, patients=PERMUTED, seed=seed)
            move_to_test(path, keep=320)
            permute_labels(path, seed)
        elif not path.exists():
            synthesize(path, seed=seed, signal=kind)
        return path

    return make


def last_line(output: str) -> Any:
    return json.loads(output.strip().splitlines()[-1])


def train(medtrain: Any, model: str, cohort: Path, out: str, *more: str) -> tuple[dict[str, Any], float]:
    """The evaluation of the held-out group after training the demo, and how long the training took."""
    started = time.monotonic()
    arguments = ["--plugin", model, "--preset", "demo", "--data", cohort, "--out", out, "--json", *more]
    medtrain("run", *arguments, OMP_NUM_THREADS="2", timeout=1800)
    seconds = time.monotonic() - started
    return last_line(medtrain("eval", out, "--json", OMP_NUM_THREADS="2", timeout=600).stdout), seconds


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("model", "kind"), [*((m, k) for m in MODELS for k in ("growth", "permuted")), ("lmv_net", "none")]
)
def test_c_index_of_the_held_out_women(
    medtrain: Any, cohort_of: Cohorts, tmp_path: Path, model: str, kind: str, seed: int
) -> None:
    evaluation, seconds = train(medtrain, model, cohort_of(kind, seed), "run")
    metrics = json.loads((tmp_path / "run" / "split-0" / "evaluation-test" / "metrics.json").read_text())
    events = metrics["details"]["units"]["sample"]["events"]
    c_index = evaluation["metrics"]["c_index"]
    low, high = evaluation["intervals"]["c_index"]
    print(
        f"\n{model:13} {kind:9} seed {seed}: {c_index:.3f} ({low:.3f} to {high:.3f}), {events} events, {seconds:.0f} s"
    )
    shutil.rmtree(tmp_path / "run")
    if kind == "growth":
        assert c_index >= 0.65 and events >= 40
    else:
        assert c_index <= 0.58


def test_change_between_visits_is_seen_by_those_who_look_at_two(medtrain: Any, cohort_of: Cohorts) -> None:
    """No single exam of this cohort tells who falls ill; Mirai sees one exam."""
    cohort = cohort_of("change", 0)
    for model in (*LONGITUDINAL, "mirai"):
        evaluation, seconds = train(medtrain, model, cohort, model, "--epochs", "2")
        print(f"\n{model:13} change: {evaluation['metrics']['c_index']:.3f}, {seconds:.0f} s")
    output = medtrain("runs", "compare", *LONGITUDINAL, "mirai", "--out", "compared", "--json", timeout=600).stdout
    (made,) = last_line(output)["comparisons"]
    for unit, compared in made["units"].items():
        differences = {(one["first"], one["second"]): one for one in compared["differences"]["c_index"]}
        for model in LONGITUDINAL:
            one = differences[model, "mirai"]
            interval = f"{one['low']:.3f} to {one['high']:.3f}"
            print(f"{unit}: {model} - mirai {one['value']:.3f} ({interval}), p {one['p']:.4f}")
            assert one["low"] > 0


def test_without_data_the_demo_is_trained(medtrain: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    result = medtrain("run", "--plugin", "lmv_net", "--out", "run", OMP_NUM_THREADS="2", timeout=900)
    seconds = time.monotonic() - started
    print(f"\n{result.stdout}\n{seconds:.0f} s")
    assert result.stdout.startswith("No data given: training the embedded demo")
    for told in ("c_index", "auc_year_5", "Run directory", "medtrain eval run --group test"):
        assert told in result.stdout
    assert (tmp_path / "run" / "split-0" / "best-c_index" / "model.safetensors").is_file()
