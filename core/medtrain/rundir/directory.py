"""The run directory: the only place that knows its file names.

<run>/maps.json               schema and medtrain versions, plugins, when it was made
<run>/config.toml             the resolved configuration
<run>/environment.json        Python, torch, packages, device
<run>/objects.json            objects of a Python user, by import path and arguments
<run>/index.json              derived: splits, their files with checksums (medtrain runs verify)
<run>/folds-<group>/          results across splits
<run>/split-<i>/config.toml   the configuration this split was trained with
<run>/split-<i>/setup.json    device, processes, threads
<run>/split-<i>/data.json     data of a Python user, by import path and arguments
<run>/split-<i>/split.json    who is in which group, with a hash
<run>/split-<i>/status.json   running, completed, interrupted, ...
<run>/split-<i>/history.jsonl one record per epoch; cut back to the checkpoint on resume
<run>/split-<i>/timing.jsonl  wall-clock figures, kept apart so that histories are reproducible
<run>/split-<i>/log.txt
<run>/split-<i>/control       there while the split is to pause
<run>/split-<i>/last, best-<metric>, epoch-<n>, step-<n>   checkpoints
<run>/split-<i>/evaluation-<group>/   metrics.json, predictions.parquet and .csv, plots/, report.html
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medtrain._version import __version__
from medtrain.errors import UsageError
from medtrain.rundir import checkpoint
from medtrain.rundir.files import new_folder, read_json, sha256, write_json, write_text
from medtrain.rundir.records import Lock, RecordFile

SCHEMA = 1


INDEX, CONFIG, ENVIRONMENT, OBJECTS = "maps.json", "config.toml", "environment.json", "objects.json"


FILES, SETUP, DATA = "index.json", "setup.json", "data.json"


LAST = "last"  # the newest checkpoint


VOLATILE = ("lock", "control", "log.txt", "status.json", "timing.jsonl")  # change without anything being wrong


class Maps:
    """One run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls,
        path: Path,
        config: str,
        plugins: list[dict[str, str]],
        environment: dict[str, Any],
        objects: dict[str, Any] | None = None,
    ) -> Maps:
        """A run directory, there at once and whole; the one that is there when other splits are in it."""
        if (path / INDEX).is_file():
            return cls.open(path)
        check_creatable(path)
        try:
            with new_folder(path) as aside:
                (aside / CONFIG).write_text(config, encoding="utf-8")
                write_json(aside / ENVIRONMENT, environment)
                if objects:
                    write_json(aside / OBJECTS, objects)
                index = {
                    "schema": SCHEMA,
                    "medtrain": __version__,
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "plugins": plugins,
                    "sha256": {file.name: sha256(file) for file in sorted(aside.iterdir())},
                }
                write_json(aside / INDEX, index)
        except OSError:
            if not (path / INDEX).is_file():
                raise
            return cls.open(path)  # another process, training another split, was faster
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Maps:
        """An existing run directory; errors say what is missing or too new."""
        if not (path / INDEX).is_file():
            raise UsageError(f"{path}: not a run directory ({INDEX} is missing); `medtrain runs list` shows runs")
        maps = cls(path)
        schema = maps.index().get("schema")
        if schema != SCHEMA:
            raise UsageError(f"{path}: written with run-directory schema {schema}, this medtrain reads {SCHEMA}")
        return maps

    @classmethod
    def containing(cls, path: Path) -> Maps:
        """The run directory that a path inside it (a checkpoint, say) belongs to."""
        for folder in (path, *path.resolve().parents):
            if (folder / INDEX).is_file():
                return cls.open(folder)
        raise UsageError(f"{path}: neither a run directory nor inside one")

    def index(self) -> dict[str, Any]:
        return read_json(self.path / INDEX)

    def environment(self) -> dict[str, Any]:
        return read_json(self.path / ENVIRONMENT)

    def objects(self) -> dict[str, Any]:
        """Recipes of the objects a Python user gave; empty when there were none."""
        return _read_if_there(self.path / OBJECTS) or {}

    @property
    def config_file(self) -> Path:
        return self.path / CONFIG

    def write_index(self) -> None:
        """Renew the derived index: every split, its status and its files with size and checksum.

        It is never read to train or evaluate; `medtrain runs verify` holds the files against it. The files of a
        checkpoint have their checksums in its own manifest, which stands for them here.
        """
        described = {}
        for folder in self.splits():
            files = {
                str(path.relative_to(folder.path)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
                for path in _lasting_files(folder)
            }
            described[folder.path.name] = {"status": folder.status()["status"], "files": files}
        write_json(self.path / FILES, {"schema": SCHEMA, "medtrain": __version__, "splits": described})

    def listed_files(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The files of each split, as the derived index has them; empty while no split is complete."""
        if not (self.path / FILES).is_file():
            return {}
        return {name: split["files"] for name, split in read_json(self.path / FILES)["splits"].items()}

    def folds(self, group: str) -> Path:
        """Where results across splits go."""
        return self.path / f"folds-{group}"

    def split(self, number: int) -> SplitFolder:
        return SplitFolder(self.path / f"split-{number}")

    def splits(self) -> list[SplitFolder]:
        """The splits there are, by number."""
        found = [p for p in self.path.glob("split-*") if re.fullmatch(r"split-\d+", p.name)]
        return [SplitFolder(p) for p in sorted(found, key=lambda p: int(p.name[6:]))]


class SplitInputs:
    """What a split is trained with and on, as its folder records it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, config: str, setup: dict[str, Any]) -> None:
        """The configuration and the machine, at the start and at every resume."""
        write_text(self.path / CONFIG, config)
        write_json(self.path / SETUP, setup)

    def setup(self) -> dict[str, Any]:
        """The machine; empty for a split that never started."""
        return _read_if_there(self.path / SETUP) or {}

    def write_data(self, described: dict[str, Any]) -> None:
        """How data that were given in Python are found again."""
        write_json(self.path / DATA, described)

    def data(self) -> dict[str, Any] | None:
        """The same; None when the data are a plugin's."""
        return _read_if_there(self.path / DATA)


class SplitFolder:
    """One split's folder: its own lock, inputs, history, checkpoints and evaluations."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock, self.inputs = Lock(path), SplitInputs(path)
        self._history, self._timing = RecordFile(path / "history.jsonl"), RecordFile(path / "timing.jsonl")

    @property
    def number(self) -> int:
        return int(self.path.name.removeprefix("split-"))

    @property
    def config_file(self) -> Path:
        return self.path / CONFIG

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the split; the lock goes with the process, however it ends."""
        with self.lock.hold():
            try:
                yield
            finally:
                self._history.close()
                self._timing.close()

    def erase(self) -> None:
        """Remove a split that nobody is training."""
        if self.lock.is_held():
            raise UsageError(f"{self.path}: another process is training this split")
        shutil.rmtree(self.path, ignore_errors=True)

    def write_membership(self, membership: dict[str, Any], digest: str, about: dict[str, Any]) -> None:
        write_json(self.path / "split.json", {"sha256": digest, "about": about, "groups": membership})

    def membership(self) -> dict[str, Any]:
        return read_json(self.path / "split.json")

    def write_status(self, status: str, **facts: Any) -> None:
        # Not synced: it is written every second, and a resume reads the checkpoint instead.
        write_json(self.path / "status.json", {"status": status, "process": os.getpid(), **facts}, sync=False)

    def status(self) -> dict[str, Any]:
        """The status; "running" or "paused" of a process that is gone becomes "killed"."""
        try:
            status = read_json(self.path / "status.json")
        except UsageError:
            return {"status": "unknown"}
        if status["status"] in ("running", "paused") and not self.lock.is_held():
            status["status"] = "killed"
        return status

    def append_history(self, record: dict[str, Any]) -> None:
        self._history.append(record)

    def append_timing(self, record: dict[str, Any]) -> None:
        self._timing.append(record)

    def history(self) -> list[dict[str, Any]]:
        """One record per finished epoch; undefined values are None."""
        return self._history.read()

    def cut_history(self, epochs: int) -> None:
        """Remove the epochs from number `epochs` on."""
        self._history.keep(lambda record: record["epoch"] < epochs)

    def log(self, line: str) -> None:
        """Add a line to the split's log."""
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n")

    def checkpoint(self, name: str) -> Path:
        return self.path / name

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, oldest step first."""
        return list(checkpoint.folders(self.path)) if self.path.is_dir() else []

    def best(self) -> Path | None:
        """The best checkpoint, if one was kept: that of the monitored value, else another one's."""
        kept = [path for path in self.checkpoints() if path.name.startswith("best-")]
        monitored = f"best-{(self.status().get('best') or {}).get('name')}"
        return next((path for path in kept if path.name == monitored), kept[0] if kept else None)

    def pause(self, wanted: bool = True) -> None:
        """Ask the process that trains this split to wait at its next step, or to go on."""
        if wanted:
            write_text(self.path / "control", "pause\n")
        else:
            (self.path / "control").unlink(missing_ok=True)

    def is_to_pause(self) -> bool:
        return (self.path / "control").exists()

    def evaluation(self, group: str) -> Path:
        return self.path / f"evaluation-{group}"


def _lasting_files(folder: SplitFolder) -> list[Path]:
    """The files whose change or loss means damage; of a checkpoint its manifest, with the checksums."""
    manifests = [path / checkpoint.MANIFEST for path in folder.checkpoints()]
    inside = {file for manifest in manifests for file in manifest.parent.iterdir()}
    found = {path for path in folder.path.rglob("*") if path.is_file()} - inside
    hidden = {path for path in found if any(part.startswith(".") for part in path.relative_to(folder.path).parts)}
    return sorted({path for path in found - hidden if path.name not in VOLATILE} | set(manifests))


def _read_if_there(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def check_creatable(path: Path) -> None:
    """Refuse an output folder that is not empty or cannot be written, before anything is done for it."""
    if path.exists():
        if not path.is_dir():
            raise UsageError(f"{path}: a file is in the way; give another --out")
        if any(path.iterdir()):
            what = (
                "a run (resume it, or give another --out)" if (path / INDEX).exists() else "files; give another --out"
            )
            raise UsageError(f"{path}: the folder already holds {what}")
    parent = path
    while not parent.exists():
        parent = parent.parent
    try:
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({parent}: {error.strerror}); give another --out") from None


def default_path(plugins: list[str], name: str = "") -> Path:
    """`runs/<UTC time>-<first plugin>[-<name>]`."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    parts = [stamp, re.sub(r"[^\w-]+", "_", plugins[0]) if plugins else "run", *([name] if name else [])]
    path = Path("runs") / "-".join(parts)
    number = 2
    while path.exists():
        path = Path("runs") / "-".join([*parts, str(number)])
        number += 1
    return path
