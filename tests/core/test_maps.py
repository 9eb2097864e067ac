"""The run directory: locks, histories that a crash cut short, and folders it refuses."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from medtrain.errors import UsageError
from medtrain.rundir import directory as maps
from medtrain.rundir import write_json
from medtrain.rundir.directory import Maps
from medtrain.rundir.environment import environment


@pytest.fixture
def run(tmp_path: Path) -> Maps:
    made = Maps.create(tmp_path / "run", "x = 1\n", [{"name": "toy"}], {"python": "3"})
    made.split(0).path.mkdir()
    return made


def test_create_open_and_read(run: Maps) -> None:
    opened = Maps.open(run.path)
    assert opened.config_file.read_text() == "x = 1\n"
    assert opened.index()["plugins"] == [{"name": "toy"}]
    assert opened.environment() == {"python": "3"}
    (run.path / "split-10").mkdir()
    (run.path / "split-2").mkdir()
    (run.path / "split-x").mkdir()
    assert [split.number for split in opened.splits()] == [0, 2, 10]
    assert Maps.containing(run.path / "split-0" / "last").path == run.path


def test_a_folder_that_is_no_run(tmp_path: Path, run: Maps) -> None:
    with pytest.raises(UsageError, match="not a run directory"):
        Maps.open(tmp_path)
    with pytest.raises(UsageError, match="neither a run directory nor inside one"):
        Maps.containing(tmp_path)
    write_json(run.path / "maps.json", {"schema": 99})
    with pytest.raises(UsageError, match="schema 99, this medtrain reads 1"):
        Maps.open(run.path)


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, run: Maps) -> None:
    with pytest.raises(UsageError, match="already holds a run"):
        maps.check_creatable(run.path)
    (tmp_path / "other").mkdir()
    maps.check_creatable(tmp_path / "other")
    (tmp_path / "other" / "x").write_text("")
    with pytest.raises(UsageError, match="already holds files"):
        maps.check_creatable(tmp_path / "other")
    with pytest.raises(UsageError, match="a file is in the way"):
        maps.check_creatable(tmp_path / "other" / "x")
    with pytest.raises(UsageError, match="cannot be written"):
        maps.check_creatable(tmp_path / "other" / "x" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="cannot be written"):
            maps.check_creatable(tmp_path / "a" / "b")
    finally:
        tmp_path.chmod(0o700)


def test_one_process_at_a_time_trains_a_split(run: Maps) -> None:
    with run.split(0).locked():
        with pytest.raises(UsageError, match="another process is training this split"), run.split(0).locked():
            pass
        with run.split(1).locked():
            pass
    with run.split(0).locked():
        pass


def test_a_forked_process_does_not_keep_the_lock(run: Maps) -> None:
    """As a loader worker does that outlives a killed run."""
    ready, go = os.pipe(), os.pipe()
    holder = run.split(0).locked()
    holder.__enter__()
    child = os.fork()
    if not child:
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(UsageError, match="another process"), run.split(0).locked():
        pass
    holder.__exit__(None, None, None)
    with run.split(0).locked():
        pass
    os.write(go[1], b"x")
    os.waitpid(child, 0)


def test_running_without_its_lock_means_killed(run: Maps) -> None:
    split = run.split(0)
    assert split.status() == {"status": "unknown"}
    split.write_status("running", epoch=1)
    assert split.status()["status"] == "killed"
    with split.locked():
        assert split.status()["status"] == "running"
    assert split.status()["status"] == "killed"
    split.write_status("completed")
    assert split.status()["status"] == "completed"


def test_history_is_cut_and_survives_a_torn_line(run: Maps) -> None:
    split = run.split(0)
    assert split.history() == []
    for epoch in range(4):
        split.append_history({"epoch": epoch, "loss": 0.1 + 0.2, "fit": float("nan"), "list": [float("inf"), 1]})
    whole = split.history()
    assert whole[3] == {"epoch": 3, "loss": 0.1 + 0.2, "fit": None, "list": [None, 1]}
    path = split.path / "history.jsonl"
    path.write_text(path.read_text() + '{"epoch": 4, "lo')
    assert split.history() == whole
    split.cut_history(2)
    assert split.history() == whole[:2]
    split.append_history({"epoch": 2})
    assert [record["epoch"] for record in split.history()] == [0, 1, 2]
    split.append_timing({"epoch": 0})
    assert (split.path / "timing.jsonl").read_text() == '{"epoch": 0}\n'


def test_membership_log_and_evaluation(run: Maps) -> None:
    split = run.split(0)
    split.write_membership({"train": {"samples": ["a"]}}, "abc", {"n": 1})
    assert split.membership() == {"sha256": "abc", "about": {"n": 1}, "groups": {"train": {"samples": ["a"]}}}
    split.log("one")
    split.log("two")
    lines = (split.path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["one", "two"]
    assert split.evaluation("test").name == "evaluation-test"
    assert split.checkpoints() == [] and split.best() is None
    assert run.split(7).checkpoints() == []


def test_damaged_json_is_named(run: Maps) -> None:
    (run.path / "environment.json").write_text("{")
    with pytest.raises(UsageError, match=r"environment\.json: not valid JSON"):
        run.environment()


def test_default_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = maps.default_path(["lmv_net", "other"], "trial")
    assert re.fullmatch(r"runs/\d{8}T\d{6}-lmv_net-trial", str(path))
    assert re.fullmatch(r"runs/\d{8}T\d{6}-run", str(maps.default_path([])))
    assert "/" not in maps.default_path(["a/b:c"]).name
    taken = []
    for _ in range(3):
        taken.append(maps.default_path(["toy"]))
        taken[-1].mkdir(parents=True)
    assert len(set(taken)) == 3


def test_the_environment_names_versions(run: Maps) -> None:
    facts = environment()
    assert facts["packages"]["torch"] == facts["torch"].split("+")[0] or facts["torch"].startswith("2")
    assert json.loads(json.dumps(facts)) == facts
    assert set(facts) == {"medtrain", "python", "platform", "torch", "threads", "gpu", "command", "git", "packages"}
