"""Plugin packages of the previous release, its example and what it scaffolds, pass their own tests under this code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from codes import Code, write_distribution

pytestmark = [pytest.mark.compatibility, pytest.mark.timeout(900), pytest.mark.xdist_group("packages")]
SCAFFOLDS = {f"my_{kind}": kind for kind in ("model", "loss", "scheduler", "callback")}


@pytest.fixture(scope="module")
def packages(previous: Code, current: Code, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Folder by plugin; all of them are installed for the code under test."""
    folder = tmp_path_factory.mktemp("packages")
    shutil.copytree(previous.root / "examples" / "medtrain-plugin-x", folder / "x")
    commands = [["plugins", "new", name, "--kind", kind, "--out", name] for name, kind in SCAFFOLDS.items()]
    for done in previous.together(commands, folder):
        assert done.code == 0, done
    found = {name: folder / name for name in ("x", *SCAFFOLDS)}
    for package in found.values():
        write_distribution(folder / "site", package / "pyproject.toml")
    current.folders += [folder / "site", *(package / "src" for package in found.values())]
    yield found
    current.folders.clear()


def test_they_are_found_with_their_kinds(packages: dict[str, Path], current: Code, tmp_path: Path) -> None:
    rows = {row["name"]: row for row in current("plugins", "list", "--json", "--probe", cwd=tmp_path).json()}
    assert {name: rows[name]["kind"] for name in packages} == {"x": "scheduler", **SCAFFOLDS}
    assert {rows[name]["status"] for name in packages} == {"ok"}, json.dumps(rows, indent=1)


def test_they_conform(packages: dict[str, Path], current: Code, tmp_path: Path) -> None:
    for done in current.together([["plugins", "check", name] for name in packages], tmp_path):
        assert done.code == 0 and "FAIL" not in done.stdout and "ok  " in done.stdout, done


def test_their_own_tests_pass(packages: dict[str, Path], current: Code, tmp_path: Path) -> None:
    suites = [package / "tests" for package in packages.values()]
    settings = ["-q", "-p", "no:cacheprovider", "--rootdir", tmp_path]
    done = current.python("-m", "pytest", *settings, *suites, cwd=tmp_path)
    assert "13 passed" in done.stdout, done.stdout
