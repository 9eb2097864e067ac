"""`medtrain runs verify`: whether a run directory is what it says it is, file by file; nothing is changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from medtrain.errors import MedtrainError, UsageError
from medtrain.rundir import checkpoint
from medtrain.rundir import directory as maps
from medtrain.rundir.directory import Maps, SplitFolder
from medtrain.rundir.files import read_json, sha256


@dataclass(frozen=True)
class Checked:
    """One thing that was looked at. problem: "" when it is as it should be."""

    what: str
    problem: str = ""


def verify(path: Path) -> list[Checked]:
    """Everything in a run directory that can be checked, the damaged included. UsageError: it is no run directory."""
    run = Maps.open(path)
    checked = [_root_file(run, name, wanted) for name, wanted in run.index().get("sha256", {}).items()]
    listed = _listed(run)
    for folder in run.splits():
        checked += _split(folder)
        checked += _files(folder, listed.get(folder.path.name, {}))
    there = {folder.path.name for folder in run.splits()}
    checked += [Checked(name, "the index lists it, the folder is gone") for name in listed if name not in there]
    return checked


def _root_file(run: Maps, name: str, wanted: str) -> Checked:
    file = run.path / name
    if not file.is_file():
        return Checked(name, "missing")
    return Checked(name, "" if sha256(file) == wanted else "changed since the run was made")


def _listed(run: Maps) -> dict[str, dict[str, dict[str, str]]]:
    """The files of each split by the derived index; empty while no split is complete."""
    if not (run.path / maps.FILES).is_file():
        return {}
    return {name: split["files"] for name, split in read_json(run.path / maps.FILES)["splits"].items()}


def _split(folder: SplitFolder) -> list[Checked]:
    name = folder.path.name
    checked = [_membership(folder)]
    try:
        epochs = [record["epoch"] for record in folder.history()]
        gap = epochs != list(range(len(epochs)))
        checked.append(Checked(f"{name}/history.jsonl", f"the epochs are {epochs}" if gap else ""))
    except (ValueError, KeyError, TypeError) as error:
        checked.append(Checked(f"{name}/history.jsonl", f"not a history: {error}"))
    for path in folder.checkpoints():
        try:
            checkpoint.read(path)
            checked.append(Checked(f"{name}/{path.name}"))
        except MedtrainError as error:
            checked.append(Checked(f"{name}/{path.name}", str(error)))
    return checked


def _membership(folder: SplitFolder) -> Checked:
    what = f"{folder.path.name}/split.json"
    try:
        recorded = folder.membership()
        text = json.dumps(recorded["groups"], sort_keys=True)
    except (UsageError, KeyError, TypeError) as error:
        return Checked(what, str(error))
    same = hashlib.sha256(text.encode()).hexdigest() == recorded.get("sha256")
    return Checked(what, "" if same else "the members are not those of its checksum")


def _files(folder: SplitFolder, listed: dict[str, dict[str, str]]) -> list[Checked]:
    """The other files against the index; those of a split trained on since it was written may have changed."""
    checked = []
    for name, known in listed.items():
        file = folder.path / name
        what = f"{folder.path.name}/{name}"
        if not file.is_file():
            checked.append(Checked(what, "the index lists it, it is gone"))
        elif file.name not in (checkpoint.MANIFEST, "split.json", "history.jsonl"):  # looked at more closely elsewhere
            same = sha256(file) == known["sha256"]
            checked.append(Checked(what, "" if same else "changed since the index was written"))
    return checked
