"""Two processes are one process with twice the batch: same learning rates, loss, metrics, weights; same ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medtrain import Trainer
from medtrain.rundir.directory import Maps
from medtrain.runtime.determinism import seed_model
from medtrain.runtime.distributed import World, join

# 17 samples in global batches of 8: the last one has a single sample, so that one process gets none.
TASK = (
    "toy_plugin.samples=17",
    "toy_plugin.noise=0.1",
    "toy_plugin.shift=0.1",
    "optimization.num_epochs=8",
    "optimization.learning_rate=0.2",
    "optimization.clip_grad_norm=0.5",
    "scheduler.name=plateau",
    "scheduler.patience=0",
    "scheduler.warmup_steps=4",
    "early_stopping.patience=4",
    "early_stopping.min_delta=0.02",
)


def settings(*changes: str) -> list[str]:
    return [part for change in (*TASK, "computational.device=cpu", *changes) for part in ("--set", change)]


def ends(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"end-{rank}").read_text())


def rates(folder: Path, rank: int) -> list[float]:
    return [float(line) for line in (folder / f"rates-{rank}").read_text().split()]


def flat(value: Any) -> list[float]:
    return [number for item in value for number in flat(item)] if isinstance(value, list) else [value]


def witness(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


def test_two_processes_equal_one(medtrain: Any, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    pair, alone = witness(tmp_path, "pair"), witness(tmp_path, "alone")
    arguments = settings("toy_plugin.validation=9", f"toy_plugin.witness={pair}", "data.batch_size=4")
    said = medtrain("run", "--plugin", "toy_plugin", *arguments, "--out", "two", "--nproc", 2, "--json").stdout
    whole = trainer("one", *TASK, f"toy_plugin.witness={alone}", "data.batch_size=8").train()
    assert json.loads(said.splitlines()[-1])["epochs"] == whole.epochs

    # Identical on both ranks: weights, rates, the end.
    assert ends(pair, 0) == ends(pair, 1)
    assert rates(pair, 0) == rates(pair, 1)

    # The same as one process with the doubled batch.
    assert rates(pair, 0) == pytest.approx(rates(alone, 0), rel=1e-12)
    here, there = Maps.open(tmp_path / "two").split(0), Maps.open(whole.maps).split(0)
    assert len(here.history()) == len(there.history())
    for record, wanted in zip(here.history(), there.history(), strict=True):
        assert record == pytest.approx(wanted, abs=1e-6)
    for name, value in ends(pair, 0)["weights"].items():
        assert flat(value) == pytest.approx(flat(ends(alone, 0)["weights"][name]), abs=1e-5)

    # And something happened: the plateau came down, and early stopping ended the run before its last epoch.
    assert rates(pair, 0)[-1] < max(rates(pair, 0))
    assert len(here.history()) < 8
    assert here.status()["reason"] == there.status()["reason"] == "fit has not improved for 4 evaluations"


@pytest.mark.acceptance
def test_preempted_in_two_processes_and_a_group_smaller_than_the_world(
    medtrain: Any, trainer: Callable[..., Trainer], wait_for: Any, tmp_path: Path
) -> None:
    """SIGTERM to the launcher: exit code 75, and the resumed run ends as one uninterrupted process does."""
    pair = witness(tmp_path, "pair")
    # Processes agree on a signal every tenth step only: an epoch has 12 here.
    changes = ("toy_plugin.validation=1", "toy_plugin.samples=90", "early_stopping.patience=40")
    halves = ("data.batch_size=2", "optimization.accumulation_steps=2")
    arguments = settings(
        *changes, *halves, "toy_plugin.wait=0.05", f"toy_plugin.witness={pair}", "optimization.num_epochs=4"
    )
    process = medtrain.start("run", "--plugin", "toy_plugin", *arguments, "--out", "two", "--nproc", 2)
    wait_for(lambda: (pair / "rates-0").exists() and len(rates(pair, 0)) > 12)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    split = Maps.open(tmp_path / "two").split(0)
    assert split.status()["status"] == "preempted"
    assert split.status()["step"] == 20
    medtrain("resume", "two", "--nproc", 2, "--set", "toy_plugin.wait=0", "--quiet")
    assert ends(pair, 0) == ends(pair, 1)
    assert ends(pair, 0)["step"] == 48
    doubled = ("data.batch_size=8", "optimization.num_epochs=4")
    whole = trainer("one", *TASK, *changes, *doubled, f"toy_plugin.witness={witness(tmp_path, 'alone')}").train()
    for record, wanted in zip(split.history(), Maps.open(whole.maps).split(0).history(), strict=True):
        assert record == pytest.approx(wanted, abs=1e-6)


@pytest.mark.acceptance
def test_steps_left_out_in_two_processes(medtrain: Any, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """One process sees a sample that is no number; both leave the step out, as one process does."""
    pair, alone = witness(tmp_path, "pair"), witness(tmp_path, "alone")
    changes = ("toy_plugin.nan_from=3", "optimization.nonfinite=skip", "optimization.num_epochs=3")
    arguments = settings(*changes, f"toy_plugin.witness={pair}", "data.batch_size=4")
    medtrain("run", "--plugin", "toy_plugin", *arguments, "--out", "two", "--nproc", 2, "--quiet")
    whole = trainer("one", *TASK, *changes, f"toy_plugin.witness={alone}", "data.batch_size=8").train()
    assert ends(pair, 0) == ends(pair, 1)
    histories = Maps.open(tmp_path / "two").split(0).history(), Maps.open(whole.maps).split(0).history()
    assert [record["train/skipped_steps"] for record in histories[0]] == [1, 1, 1]
    for record, wanted in zip(*histories, strict=True):
        assert record == pytest.approx(wanted, abs=1e-6)
    for name, value in ends(pair, 0)["weights"].items():
        assert flat(value) == pytest.approx(flat(ends(alone, 0)["weights"][name]), abs=1e-5)


GAN = '''
import torch
from medtrain import hookimpl
from torch import nn


class Pair(nn.Module):
    """A generator and a discriminator."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Linear(4, 3)
        self.discriminator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, batch):
        fake = self.generator(batch["features"])
        return {"logits": fake, "fake": self.discriminator(fake), "real": self.discriminator(batch["target"])}


def adversarial(outputs, batch):
    entropy = nn.functional.softplus
    return {
        "generator": entropy(-outputs["fake"]).mean(),
        "discriminator": (entropy(outputs["fake"]) + entropy(-outputs["real"])).mean(),
    }


class Gan:
    rates = {"generator": 0.05, "discriminator": 0.02}

    @hookimpl
    def build_model(self):
        return Pair()

    @hookimpl
    def build_loss(self):
        return adversarial

    @hookimpl
    def build_optimizer(self, model):
        return {name: torch.optim.Adam(getattr(model, name).parameters(), lr=lr) for name, lr in self.rates.items()}


class OnlyTheGenerator(Gan):
    rates = {"generator": 0.05, "discriminator": 0.0}
'''


@pytest.mark.acceptance
@pytest.mark.parametrize("kind", ["Gan", "OnlyTheGenerator"])
def test_several_optimizers_in_two_processes(
    medtrain: Any, trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Accumulated, clipped and with a batch that leaves one process empty: as one process; nobody moves the other's."""
    pair, alone = witness(tmp_path, "pair"), witness(tmp_path, "alone")
    (tmp_path / "tiny_gan.py").write_text(GAN)
    monkeypatch.setattr(medtrain, "paths", [*medtrain.paths, str(tmp_path)])
    monkeypatch.syspath_prepend(tmp_path)
    changes = ("optimization.num_epochs=3", "scheduler.name=cosine", "early_stopping.patience=9")
    arguments = settings(*changes, f"toy_plugin.witness={pair}", "data.batch_size=2")
    arguments += [
        "--set",
        "optimization.accumulation_steps=2",
        "--plugin",
        "toy_plugin",
        "--plugin",
        f"tiny_gan:{kind}",
    ]
    medtrain("run", *arguments, "--out", "two", "--nproc", 2, "--quiet")
    import tiny_gan

    made = trainer("one", *TASK, *changes, f"toy_plugin.witness={alone}", "data.batch_size=8")
    given = ["toy_plugin", getattr(tiny_gan, kind)()]
    whole = Trainer(tmp_path / "one", config=made.config, plugins=given).train()
    assert ends(pair, 0) == ends(pair, 1)
    histories = Maps.open(tmp_path / "two").split(0).history(), Maps.open(whole.maps).split(0).history()
    for record, wanted in zip(*histories, strict=True):
        assert record == pytest.approx(wanted, abs=1e-5)
    weights = ends(pair, 0)["weights"]
    for name, value in weights.items():
        assert flat(value) == pytest.approx(flat(ends(alone, 0)["weights"][name]), abs=1e-4)
    seed_model(0)
    fresh = {name: value.tolist() for name, value in tiny_gan.Pair().state_dict().items()}
    still = {name.split(".")[0] for name, value in weights.items() if value == fresh[name]}
    assert still == ({"discriminator"} if kind == "OnlyTheGenerator" else set())


@pytest.mark.acceptance
def test_a_plugin_that_fails_in_one_process_ends_all(medtrain: Any, tmp_path: Path) -> None:
    """The other process waits for gradients that never come; it must not wait for ever."""
    arguments = settings("toy_plugin.fail_at=4", "optimization.num_epochs=2", "data.batch_size=4")
    errors = medtrain("run", "--plugin", "toy_plugin", *arguments, "--out", "two", "--nproc", 2, code=1).stderr
    assert "hook on_step_end failed: ValueError: the tracker is away" in errors
    split = Maps.open(tmp_path / "two").split(0)
    assert split.status()["status"] == "failed"
    assert [record["step"] for record in split.history()] == [3]
    assert split.checkpoint("last").is_dir()


def test_one_process_needs_no_torch_distributed() -> None:
    world = join("cpu")
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert world.any(True) and not world.any(False)
    assert world.broadcast("x") == "x"
    assert world.gather([1, 2]) == [1, 2]
    world.barrier()
    with world.main_first():
        assert World().is_main
