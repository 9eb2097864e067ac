"""`medtrain runs verify`: whether a run directory is as it was written, file by file; nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medtrain.errors import MedtrainError, UsageError
from medtrain.rundir import Maps, SplitFolder, sha256, sha256_of
from medtrain.rundir.checkpoint import MANIFEST, read


@dataclass(frozen=True)
class Checked:
    """One thing that was looked at. problem: "" when it is as it should be."""

    what: str
    problem: str = ""


def verify(path: Path) -> list[Checked]:
    """Everything in a run directory that can be checked, the damaged included. UsageError: it is no run directory."""
    run = Maps.open(path)
    checked = [_root_file(run, name, wanted) for name, wanted in run.index().get("sha256", {}).items()]
    listed = run.listed_files()
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
            read(path)
            checked.append(Checked(f"{name}/{path.name}"))
        except MedtrainError as error:
            checked.append(Checked(f"{name}/{path.name}", str(error)))
    return checked


def _membership(folder: SplitFolder) -> Checked:
    what = f"{folder.path.name}/split.json"
    try:
        recorded = folder.membership()
        digest = sha256_of(recorded["groups"])
    except (UsageError, KeyError, TypeError) as error:
        return Checked(what, str(error))
    return Checked(what, "" if digest == recorded.get("sha256") else "the members are not those of its checksum")


def _files(folder: SplitFolder, listed: dict[str, dict[str, str]]) -> list[Checked]:
    """The other files against the index; those of a split trained on since it was written may have changed."""
    checked = []
    for name, known in listed.items():
        file = folder.path / name
        what = f"{folder.path.name}/{name}"
        if not file.is_file():
            checked.append(Checked(what, "the index lists it, it is gone"))
        elif file.name not in (MANIFEST, "split.json", "history.jsonl"):  # looked at more closely elsewhere
            same = sha256(file) == known["sha256"]
            checked.append(Checked(what, "" if same else "changed since the index was written"))
    return checked
