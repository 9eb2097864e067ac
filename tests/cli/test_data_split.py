"""`medtrain data split` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from medtrain import KFold, SingleSplit


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Thirty participants at three sites, two sessions each."""
    lines = [
        f"sub-{i:02d}\tses-M{month}\t{60 + i**1.3:.2f}\t{'FM'[i % 2]}\t{'ABC'[i % 3]}"
        for i in range(30)
        for month in (12, 6)
    ]
    path = tmp_path / "people.tsv"
    path.write_text("\n".join(["participant_id\tsession_id\tage\tsex\tsite", *lines]) + "\n")
    return path


def test_hold_out_then_folds(medtrain: Any, table: Path, tmp_path: Path) -> None:
    said = medtrain("data", "split", table, "--out", "s", "--test", 0.2, "--folds", 4, "--stratify", "age, sex").stdout
    assert "Wrote s/split\n" in said
    assert "Wrote s/split/4_fold" in said
    assert "sex: p = " in said
    folds, held_out = KFold(tmp_path / "s/split/4_fold"), SingleSplit(tmp_path / "s/split")
    assert (folds.n_splits, held_out.subset_name) == (4, "test")
    baseline = (tmp_path / "s/split/test_baseline.tsv").read_text().splitlines()
    assert len(baseline) == 7
    assert all("ses-M6" in line for line in baseline[1:])


@pytest.mark.acceptance
def test_the_same_command_makes_the_same_split(medtrain: Any, table: Path, tmp_path: Path) -> None:
    command = ("data", "split", table, "--folds", 3, "--repeats", 2, "--stratify", "sex", "--group", "site", "--json")
    first, again = (json.loads(medtrain(*command).stdout) for _ in range(2))
    assert first["status"] == "completed"
    assert (Path(first["out"]).name, Path(again["out"]).name) == ("2x3_fold", "2x3_fold_2")
    assert len(first["sizes"]) == 6
    assert first["sizes"] == again["sizes"]
    for name in (path.relative_to(first["out"]) for path in Path(first["out"]).rglob("*.tsv")):
        assert (Path(first["out"]) / name).read_text() == (Path(again["out"]) / name).read_text()


def test_leave_one_site_out(medtrain: Any, table: Path, tmp_path: Path) -> None:
    said = medtrain("data", "split", table, "--leave-one-out", "site", "--longitudinal").stdout
    assert "left out" in said
    assert len((tmp_path / "leave_one_site_out/split-2/validation.tsv").read_text().splitlines()) == 21


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "say how to split"),
        (("--folds", 3, "--leave-one-out", "site"), 2, "it does not go with --folds"),
        (("--test", 0.2, "--repeats", 3), 2, "--repeats goes with --folds"),
        (("--folds", 3, "--stratify", "sexe"), 3, "no column 'sexe' (did you mean 'sex'?)"),
        (("--test", 0.2, "--stratify", "age", "--p-continuous", 1), 3, "reaches the thresholds"),
    ],
)
def test_what_is_refused(refused: Any, table: Path, tmp_path: Path, arguments: Any, code: int, said: str) -> None:
    assert said in refused("data", "split", table, "--out", tmp_path / "out", *arguments, code=code)
    assert not (tmp_path / "out").exists()


def test_commands_of_plugins_stay_beside_it(medtrain: Any) -> None:
    said = medtrain("data", "--help").stdout
    assert "split" in said
    assert "synth" in said
