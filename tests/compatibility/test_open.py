"""What the previous release's code says of its runs, this code says too: evaluations, comparisons, checks, lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from codes import Code, Done
from previous_runs import KINDS, Runs, differences, each, plain

pytestmark = [pytest.mark.compatibility, pytest.mark.timeout(900)]


def commands(name: str) -> list[list[Any]]:
    """Every way to look at a run; `finished` is the one that the previous code resumed, `left` that before."""
    kind = KINDS[name]
    group = ["--group", kind.group]
    return [
        ["runs", "verify", "finished", "--json"],
        ["runs", "verify", "left", "--json"],
        ["runs", "show", "finished", "--json"],
        ["runs", "show", "left", "--json"],
        ["runs", "list", ".", "--json"],
        ["eval", "finished", *group, "--json"],
        ["runs", "compare", "finished", "left", *group, "--replicates", 20, "--out", "compared", "--json"],
        ["from_maps", "finished", kind.group, kind.split, ""],
        ["from_maps", "left", "validation", kind.split, "last"],
    ]


def looked_at(name: str, runs: Runs, code: Code) -> tuple[Path, list[Done]]:
    folder = runs.folder / name / f"looked-{code.name}"
    runs.copy_run(name, folder / "left")
    runs.copy_run(name, folder / "finished", resumed=True)
    return folder, code.together(commands(name), folder)


@pytest.mark.parametrize("name", each(list(KINDS)))
def test_its_runs_are_opened_with_the_same_numbers(name: str, runs: Runs, previous: Code, current: Code) -> None:
    (before, there), (now, here) = looked_at(name, runs, previous), looked_at(name, runs, current)
    needs_functions = KINDS[name].script == "single"  # they are asked for; with them it is resumed above
    for one, other in zip(there, here, strict=True):
        evaluates = one.arguments[0] in ("eval", "from_maps") or one.arguments[1] == "compare"
        assert one.code == (2 if needs_functions and evaluates else 0), one
        assert other.code == one.code, other
        if one.code == 0:
            found = differences(plain(one.json(), before), plain(other.json(), now))
            assert not found, (other.arguments, found)
    files = written(before)
    assert files == written(now) and (needs_functions or len(files) > 4)
    for file in files:
        assert not differences(content(before / file, before), content(now / file, now)), file


def written(folder: Path) -> list[Path]:
    """What evaluations and comparisons write for other programs: numbers and predictions."""
    found = [*folder.rglob("*.parquet"), *folder.rglob("*.csv")]
    found += [path for name in ("metrics", "folds", "comparison") for path in folder.rglob(f"{name}.json")]
    return sorted(path.relative_to(folder) for path in found)


def content(file: Path, folder: Path) -> Any:
    if file.suffix == ".json":
        return plain(json.loads(file.read_text()), folder)
    if file.suffix == ".csv":
        return file.read_text()
    table = pd.read_parquet(file)
    return {"types": table.dtypes.astype(str).to_dict(), "values": table.to_csv(), "about": repr(table.attrs)}
