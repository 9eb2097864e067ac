from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from typing import get_args

import pytest
from click.testing import CliRunner
from medtrain.errors import UsageError
from medtrain_plugins.mammography.cohort.cohort import read_cohort
from medtrain_plugins.mammography.commands.data import synth
from medtrain_plugins.mammography.synthetic.synth import Signal

SMALL = ["--patients", "4", "--height", "32", "--width", "24", "--workers", "1"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(synth, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_it_writes_a_cohort_and_says_what(tmp_path):
    out = tmp_path / "new" / "cohort"
    output = run("--out", str(out), *SMALL, "--case-fraction", "0.5", "--seed", "7")
    about = read_cohort(out).about
    assert output == (
        f"4 women (2 develop cancer), {about['images']} images of 32 x 24 pixels, "
        f"{about['images'] // 2 - 8} breasts with a previous exam: {out}\n"
    )
    assert [path.name for path in out.parent.iterdir()] == ["cohort"]  # nothing is left beside it
    assert out.stat().st_mode & 0o777 == out.parent.stat().st_mode & 0o777


def test_an_earlier_cohort_is_replaced_and_a_stranger_is_not(tmp_path):
    out = tmp_path / "cohort"
    out.mkdir()
    run("--out", str(out), *SMALL)
    before = sorted(path.name for path in out.rglob("*.png"))
    run("--out", str(out), *SMALL, "--seed", "1", "--signal", "none")
    after = sorted(path.name for path in out.rglob("*.png"))
    assert before != after and len((out / "masses.tsv").read_text().splitlines()) == 1
    (out / "thesis.txt").write_text("three years of work")
    with pytest.raises(UsageError, match=r"not only a synthetic cohort \(thesis.txt\)"):
        run("--out", str(out), *SMALL)
    assert sorted(path.name for path in out.rglob("*.png")) == after
    (out / "thesis.txt").unlink()
    (out / "synthesis.json").unlink()
    with pytest.raises(UsageError, match=r"no synthesis\.json"):
        run("--out", str(out), *SMALL)
    with pytest.raises(UsageError, match="a file is in the way"):
        run("--out", str(out / "cohort.csv"), *SMALL)


def test_every_signal_can_be_asked_for_and_nothing_else(tmp_path):
    rows = {}
    for signal in get_args(Signal):
        run("--out", str(tmp_path / signal), *SMALL, "--signal", signal)
        rows[signal] = (tmp_path / signal / "masses.tsv").read_text()
        assert json.loads((tmp_path / signal / "synthesis.json").read_text())["signal"] == signal
    assert len(set(rows.values())) == 3
    refused = CliRunner().invoke(synth, ["--out", str(tmp_path / "x"), "--signal", "lesion"])
    assert refused.exit_code == 2 and "growth" in refused.output and not (tmp_path / "x").exists()


def test_help_and_missing_folder():
    runner = CliRunner()
    assert "synthetic cohort of mammograms" in runner.invoke(synth, ["--help"]).output
    missing = runner.invoke(synth, [])
    assert missing.exit_code == 2 and "--out" in missing.output


def test_the_entry_point_names_it():
    value = "medtrain_plugins.mammography.commands.data:synth"
    assert EntryPoint("data.synth.mammography", value, "medtrain.commands").load() is synth
