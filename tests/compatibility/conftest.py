"""The previous release's code beside the code under test, and the runs that the previous code made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from codes import HERE, ROOT, Code, Unavailable, check_out, remove, write_distribution
from previous_runs import Runs


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Code]:
    """The code of the commit PREVIOUS; tests are skipped where git cannot give it."""
    folder = tmp_path_factory.mktemp("previous")
    tree = folder / "code"
    try:
        check_out(tree)
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        site = write_distribution(folder / "site", tree / "pyproject.toml")
        paths = [site, *(tree / name for name in ("core", "cli", "plugins")), tree / "tests" / "toyplugin", HERE]
        yield Code("previous", tree, paths, folder / "cache")
    finally:
        remove(tree)


@pytest.fixture(scope="session")
def current(previous: Code, tmp_path_factory: pytest.TempPathFactory) -> Code:
    """The code under test, with the previous release's toy plugin: a stranger's plugin does not change with us."""
    toy = previous.root / "tests" / "toyplugin"
    return Code("current", ROOT, [toy, HERE], tmp_path_factory.mktemp("current") / "cache")


@pytest.fixture(scope="session")
def previous_help(previous: Code, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`--help` of every command of the previous code, by its words."""
    return previous.help_texts(tmp_path_factory.mktemp("help"))


@pytest.fixture(scope="session")
def runs(previous: Code, current: Code, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Every kind of run, made when it is first asked for; removed in the end, as they are large together."""
    folder = tmp_path_factory.mktemp("runs")
    yield Runs(previous, current, folder)
    shutil.rmtree(folder)
