"""Runs that the previous code made and left in the middle; what each of the two codes makes of a copy."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from codes import HERE, Code
from safetensors import safe_open

PREEMPTED = 75
# Keys of JSON outputs: wall-clock figures, numbers of processes, free space, versions of packages (of medtrain, too),
# and the import paths behind names of plugins, which may move.
VOLATILE = ("seconds", "process", "free_gb", "cache", "packages", "version", "target")
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Kind:
    """One kind of run, and where it is left.

    settings: of `medtrain run`, DATA standing for the folder that the commands `data` wrote. script: instead, a
    training of user_script.py. interrupt: SPLIT:STEP:SIGNAL. code: how the process ends. changes: of `medtrain resume`.
    group: what is evaluated. again: the same call goes on, too.
    """

    settings: Sequence[str] = ()
    interrupt: str = "0:0:KILL"
    code: int = KILLED
    data: Sequence[Sequence[str]] = ()
    script: str = ""
    changes: Sequence[str] = ()
    group: str = "test"
    again: bool = False

    @property
    def split(self) -> int:
        """The split that was left."""
        return int(self.interrupt.split(":")[0])


def sets(*assignments: str) -> list[str]:
    return [f"--set={assignment}" for assignment in assignments]


LEAVING = ("--plugin=interrupting:Interrupt", "--quiet")
TOY = ("--plugin=toy_plugin", *LEAVING)
TOY_SETS = ("optimization.num_epochs=4", "data.batch_size=4", "toy_plugin.dropout=0.3", "toy_plugin.noise=0.1")
# 6 steps per epoch. Killed after the step that follows a checkpoint within an epoch.
KINDS = {
    "toy": Kind(
        [*TOY, *sets(*TOY_SETS, "checkpoint.last_every_n_steps=2", "scheduler.name=onecycle", "toy_plugin.shift=0.1")],
        "0:9:KILL",
        again=True,
    ),
    "toy-averaged": Kind(
        [
            *TOY,
            *sets(*TOY_SETS, "checkpoint.every_n_steps=2", "checkpoint.top_k=3", "optimization.ema_decay=0.8"),
            *sets("optimization.evaluation_every_n_steps=2", "early_stopping.patience=4", "scheduler.name=plateau"),
            *sets("scheduler.patience=0", "optimization.learning_rate=1", "scheduler.warmup_steps=3"),
            *sets("optimization.clip_grad_norm=0.5", "checkpoint.metrics=['loss']", "transfer.freeze=['0.*']"),
            *sets("transfer.freeze_epochs=1", "data.num_workers=1"),
        ],
        "0:15:KILL",
    ),
    "toy-stages": Kind(
        [
            *TOY,
            *sets(*TOY_SETS, "stages=[{epochs=1, batch_size=3}, {epochs=1, batch_size=5, learning_rate_scale=0.5}]"),
            *sets("optimization.optimizer=SGD", "optimization.options={momentum=0.9}"),
            *sets("scheduler.name=CosineAnnealingWarmRestarts", "scheduler.options={T_0=5}", "scheduler.interval=step"),
        ],
        "0:11:TERM",
        PREEMPTED,
    ),
}
KINDS |= {
    # Fold 0 completes; the process of fold 1 is killed, and the command that started both tells of it.
    "brain": Kind(
        [
            *("--plugin=brain", *LEAVING, "--images=DATA"),
            *sets("data.num_folds=2", "data.test_fraction=0.25", "data.batch_size=4", "run.concurrent_splits=2"),
            *sets("optimization.num_epochs=2", "checkpoint.last_every_n_steps=2", "computational.device=cpu"),
            *sets(
                "brain.input_shape=[1, 16, 16, 16]", "brain.network_options={channels=[2, 2, 2, 2, 2], hidden=[4, 4]}"
            ),
        ],
        "1:3:KILL",
        256 + KILLED,
        [["data", "synth", "brain", "--out=DATA", "--participants=16", "--sessions=1", "--sites=2", "--size=16"]],
    ),
    "karsl": Kind(
        [
            *("--plugin=karsl", *LEAVING, "--data=DATA"),
            *sets("karsl.signs=1-3", "karsl.model_size=t_1_1", "karsl.frames=8", "data.batch_size=8"),
            *sets("optimization.num_epochs=2", "computational.device=cpu"),
        ],
        "0:3:TERM",
        PREEMPTED,
        [["data", "synth", "karsl", "--out=DATA", "--signs=1-3", "--clips=5", "--seed=3"]],
    ),
    # Ended by its last step, within an epoch; the resume is allowed more of them.
    "pivot": Kind(
        [
            *("--plugin=pivot", *LEAVING, "--data=DATA/prepared/manifest.jsonl"),
            *sets("data.batch_size=2", "optimization.num_epochs=2", "optimization.max_steps=3"),
            *sets("pivot.sampling.patch_size=[16, 16, 16]", "pivot.sampling.patches_per_volume=2"),
            *sets("pivot.model.base_filters=2", "pivot.model.depth=2", "pivot.model.output_stride=2"),
            *sets("pivot.model.norm=group", "pivot.inference.window=[32, 48, 48]", "pivot.inference.overlap=0.0"),
            *sets("pivot.evaluation.loss_patches=2", "pivot.evaluation.replicates=20", "computational.device=cpu"),
        ],
        "0:-1:KILL",
        0,
        [
            ["data", "synth", "nodule", "--out=DATA/scans", "--scans=6", "--size=32,48,48", "--spacing=2.5,2.5,2.5"],
            [
                *("data", "prepare", "nodule", "--source=DATA/scans", "--annotations=DATA/scans/annotations.csv"),
                *("--out=DATA/prepared", "--spacing=2.5", "--lungs=none", "--split=40/30/30", "--workers=1"),
            ],
        ],
        changes=("--set=optimization.max_steps=99",),
    ),
    "lmv_net": Kind(
        [
            *("--plugin=lmv_net", *LEAVING, "--preset=demo", "--data=DATA"),
            *sets("lmv_net.image_size=[32, 32]", "lmv_net.bootstrap_replicates=20", "data.batch_size=8"),
            *sets("optimization.num_epochs=1", "optimization.optimizer=SGD", "checkpoint.best=false"),
            *sets("checkpoint.last_every_n_steps=2"),
        ],
        "0:3:KILL",
        data=[
            [
                *("data", "synth", "mammography", "--out=DATA", "--patients=20", "--seed=3"),
                *("--height=64", "--width=48", "--workers=1"),
            ]
        ],
    ),
}
for name, split, step in (("single", 0, 9), ("folds", 1, 7), ("loaders", 0, 8), ("objects", 0, 8)):
    group = "test" if name == "objects" else "validation"
    KINDS[f"script-{name}"] = Kind(script=name, interrupt=f"{split}:{step}:KILL", group=group, again=True)


@dataclass
class Runs:
    """`runs.made("toy")` is the folder with the directory `run` that the previous code left."""

    previous: Code
    current: Code
    folder: Path
    _made: dict[str, Path] = field(default_factory=dict)
    _resumed: dict[tuple[str, str], Path] = field(default_factory=dict)

    def made(self, name: str) -> Path:
        if name not in self._made:
            kind, folder = KINDS[name], self.folder / name / "made"
            shutil.rmtree(folder.parent, ignore_errors=True)  # of an attempt that failed
            folder.mkdir(parents=True)
            if kind.data:
                self._write_data(name)
            self._train(name, self.previous, folder, kind.code, INTERRUPT=kind.interrupt)
            self._made[name] = folder
        return self._made[name]

    def data(self, name: str) -> Path:
        """What the commands of `data` wrote."""
        return self.folder / name / "data"

    def resumed(self, name: str, code: Code) -> Path:
        """A copy, resumed by one of the codes to its end: by the command line, or in a fresh session of Python."""
        key = (name, code.name)
        if key not in self._resumed:
            kind, folder = KINDS[name], self.copy(name, f"resumed-{code.name}")
            if kind.script:
                code.python(HERE / "user_script.py", "resume", kind.script, kind.split, cwd=folder)
            else:
                code("resume", "run", "--split", kind.split, "--quiet", *kind.changes, cwd=folder)
            self._resumed[key] = folder
        return self._resumed[key]

    def called_again(self, name: str, code: Code) -> Path:
        """A copy on which the same call as in the beginning went on."""
        folder = self.copy(name, f"again-{code.name}")
        self._train(name, code, folder, 0)
        return folder

    def copy(self, name: str, target: str) -> Path:
        """A copy of the folder as it was left."""
        return Path(shutil.copytree(self.made(name), self.folder / name / target))

    def copy_run(self, name: str, target: Path, resumed: bool = False) -> None:
        """A copy of the run directory alone, as it was left or as the previous code resumed it."""
        folder = self.resumed(name, self.previous) if resumed else self.made(name)
        shutil.copytree(folder / "run", target)

    def _train(self, name: str, code: Code, folder: Path, exit_code: int, **env: str) -> None:
        kind = KINDS[name]
        if kind.script:
            code.python(HERE / "user_script.py", kind.script, cwd=folder, code=exit_code, **env)
        else:
            settings = [part.replace("DATA", str(self.data(name))) for part in kind.settings]
            code("run", *settings, "--out", "run", cwd=folder, code=exit_code, **env)

    def _write_data(self, name: str) -> None:
        commands = [[part.replace("DATA", str(self.data(name))) for part in c] for c in KINDS[name].data]
        for done in self.previous.together(commands, self.folder / name):
            assert done.code == 0, done


def each(names: list[str]) -> list[Any]:
    """One parameter a kind; the tests of a kind run in one process, which then makes its run once."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


def outcome(run: Path) -> dict[str, Any]:
    """Everything of a run directory that has to be the same to the bit: who, settings, history, weights, state.

    Left out of a checkpoint's manifest are wall-clock seconds and the checksums of files, whose contents are compared.
    """
    found: dict[str, Any] = {}
    for split in sorted(run.glob("split-*")):
        for name in ("history.jsonl", "split.json", "config.toml"):
            file = split / name
            found[f"{split.name}/{name}"] = file.read_text() if file.exists() else None
        status = json.loads((split / "status.json").read_text())
        found[f"{split.name}/status.json"] = {key: status[key] for key in status if key != "process"}
        for manifest in sorted(split.glob("[!.]*/checkpoint.json")):
            name = f"{split.name}/{manifest.parent.name}"
            facts = json.loads(manifest.read_text())
            found[f"{name}/checkpoint.json"] = {key: facts[key] for key in facts if key not in ("seconds", "sha256")}
            found[f"{name}/state.json"] = json.loads((manifest.parent / "state.json").read_text())
            for file in ("model.safetensors", "state.safetensors"):
                found[f"{name}/{file}"] = tensors(manifest.parent / file)
    return found


def tensors(path: Path) -> dict[str, str]:
    """Type, shape and digest of the bytes of every tensor."""
    found = {}
    with safe_open(path, framework="pt") as file:
        for key in sorted(file.keys()):
            tensor = file.get_tensor(key)
            digest = hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
            found[key] = f"{tensor.dtype} {list(tensor.shape)} {digest}"
    return found


def plain(value: Any, folder: Path) -> Any:
    """A JSON value without what differs between two calls: VOLATILE, and the folder it was called in."""
    if isinstance(value, dict):
        return {key: "-" if key in VOLATILE else plain(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item, folder) for item in value]
    return value.replace(str(folder), "FOLDER") if isinstance(value, str) else value


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two nested values differ, in words."""
    if isinstance(one, dict) and isinstance(other, dict):
        alone = [f"{at}/{key}: only in one of them" for key in sorted({*one} ^ {*other})]
        both = [key for key in one if key in other]
        return alone + [line for key in both for line in differences(one[key], other[key], f"{at}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [line for n, pair in enumerate(zip(one, other, strict=True)) for line in differences(*pair, f"{at}/{n}")]
    # NaN is no different from NaN.
    return [] if repr(one) == repr(other) else [f"{at}: {one!r} there, {other!r} here"]
