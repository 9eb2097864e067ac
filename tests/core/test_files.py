"""One move for files and folders: there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from medtrain.rundir import new_folder, replace_file, write_text


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_takes_its_place_at_the_end_of_the_block(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replace_file(path, sync=sync) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        assert aside.parent == tmp_path and aside.name.startswith(".")
    assert path.read_text() == "new"
    assert _names(tmp_path) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replace_file(path) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


def test_what_is_synced_is_the_file_and_then_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_text(tmp_path / "a.txt", "x")
    assert [Path(name).suffix for name in synced] == [".new", ""]
    assert synced[1] == str(tmp_path.resolve())
    write_text(tmp_path / "a.txt", "y", sync=False)
    assert len(synced) == 2


def test_a_folder_appears_whole_and_replaces_only_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    with new_folder(path) as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "a").write_text("1")
        assert not list(path.iterdir())
    assert (path / "sub" / "a").read_text() == "1"
    with pytest.raises(OSError), new_folder(path) as aside:
        (aside / "b").write_text("2")
    assert _names(path) == ["sub"]
    with new_folder(path, replace=True) as aside:
        (aside / "b").write_text("2")
    assert _names(path) == ["b"]
    with pytest.raises(ZeroDivisionError), new_folder(path, replace=True):
        raise ZeroDivisionError
    assert _names(path) == ["b"] and _names(tmp_path) == ["run"]


def test_files_and_folders_get_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
        with new_folder(tmp_path / "f"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o750
