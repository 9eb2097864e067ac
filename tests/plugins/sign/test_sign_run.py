"""Whole runs of the plugin: training, evaluation, resume, several processes, failures."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keypoint_files import clips, frames, write_npz
from medtrain import Trainer
from medtrain.errors import DataError
from medtrain.rundir.directory import Maps
from medtrain.testing import assert_conforms
from medtrain_plugins.sign.data.synth import synthesize
from medtrain_plugins.sign.evaluation.metrics import SignMetrics
from safetensors.torch import load_file

Make = Callable[..., Trainer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four synthetic signs of three signers: 48 clips to fit, 24 to test (15 of them at a time leave a rest)."""
    out = tmp_path_factory.mktemp("signs") / "data"
    synthesize(out, range(1, 5), 6, seed=3)
    return out


SIGNS = "karsl.signs=1-4"


def test_the_plugin_conforms() -> None:
    assert_conforms("karsl")


def test_evaluating_twice_gives_the_same_numbers(folder: Path, trainer: Make) -> None:
    run = trainer("run", folder, SIGNS)
    run.train()
    first, second = run.evaluate("test"), Trainer.from_maps(run.path or "").evaluate("test")
    assert first.metrics == second.metrics and first.details == second.details
    assert all(np.array_equal(first.rows[key], second.rows[key]) for key in first.rows)
    # Validation is evaluated, not trained: it is not changed either, in any epoch.
    history = Maps.open(run.path or Path()).split(0).history()
    again = run.evaluate("validation", checkpoint="last")
    assert again.metrics["loss"] == history[-1]["validation/loss"]


def test_over_fitting_a_few_signs(tmp_path: Path, trainer: Make) -> None:
    folder = tmp_path / "data"
    synthesize(folder, range(1, 5), 16, seed=1)
    changes = ("karsl.model_size=t_4_2", "optimization.num_epochs=12", "karsl.frames=16", "data.batch_size=12")
    run = trainer("run", folder, SIGNS, *changes, "karsl.dropout=0.1")
    result = run.train()
    assert result.best_metric["name"] == "loss" and result.best_metric["value"] < 0.01
    evaluation = run.evaluate("test")
    assert evaluation.metrics["top1"] == 1
    assert evaluation.details["confusions"] == [] and run.report().joinpath("metrics.json").is_file()


def test_what_is_recorded(folder: Path, trainer: Make) -> None:
    run = trainer("run", folder, SIGNS)
    run.train()
    split = Maps.open(run.path or Path()).split(0)
    about = split.membership()["about"]
    assert about["normalisation"] == "adjusted" and about["signers"] == [1, 2, 3]
    assert about["counts"] == {"train": 38, "validation": 10, "test": 24}
    record = split.history()[-1]
    assert {"validation/top1", "validation/top5", "validation/macro_f1", "validation/top1_signer_03"} <= record.keys()
    saved = (split.checkpoint("last") / "config.toml").read_text()
    assert 'normalisation = "adjusted"' in saved and 'signs = "1-4"' in saved
    assert 'name = "plateau"' in saved and "clip_grad_norm = 1.0" in saved


def test_resumed_is_uninterrupted(folder: Path, trainer: Make, tmp_path: Path) -> None:
    changes = ("optimization.num_epochs=4", "checkpoint.every_n_epochs=1", "scheduler.patience=0")
    whole = trainer("whole", folder, SIGNS, *changes, "scheduler.factor=0.5").train()
    shutil.copytree(whole.maps, tmp_path / "cut")
    Trainer.from_maps(tmp_path / "cut").resume(checkpoint="epoch-0002")
    one, other = Maps.open(whole.maps).split(0), Maps.open(tmp_path / "cut").split(0)
    assert (one.path / "history.jsonl").read_text() == (other.path / "history.jsonl").read_text()
    weights = [load_file(split.checkpoint("last") / "model.safetensors") for split in (one, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_predictions_name_the_signs(folder: Path, trainer: Make, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    words = {"AR_WORDS": [f"عر{n}" for n in range(502)], "EN_WORDS": [f"word {n}" for n in range(502)]}
    (own / "KARSL-502_Labels.json").write_text(json.dumps(words), encoding="utf-8")
    run = trainer("run", own, "karsl.signs=2-4")
    run.train()
    table = run.predict(folder)
    assert len(table) == 72 and set(table["sign"]) <= {2, 3, 4}
    assert (table["english"] == [f"word {sign - 1}" for sign in table["sign"]]).all()
    evaluated = run.evaluate("test")
    known = dict(zip(table["sample_id"], table["sign"], strict=True))
    signs = [[2, 3, 4][predicted] for predicted in evaluated.rows["predicted"]]
    assert signs == [known[name] for name in evaluated.rows["sample_id"]]
    np.save(tmp_path / "raw.npy", frames(9, adjusted=False))
    with pytest.raises(DataError, match=r"raw.*raw|are raw"):
        run.predict(tmp_path / "raw.npy")


def spoil(folder: Path, name: str) -> None:
    """A NaN in a clip of a container that was sound when it was written."""
    import pandas as pd

    index = pd.read_parquet(folder / "clips.parquet").set_index("sample_id")
    stored = np.load(folder / "frames.npy", mmap_mode="r+")
    stored[index.loc[name, "offset"] + 2, 50, 1] = np.nan
    stored.flush()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.acceptance)])
def test_a_nan_clip_is_named_and_the_checkpoint_stays(
    folder: Path, trainer: Make, tmp_path: Path, medtrain: Any, workers: int
) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    run = trainer("run", own, SIGNS, f"data.num_workers={workers}").train()
    split = Maps.open(run.maps).split(0)
    before = (split.checkpoint("last") / "model.safetensors").read_bytes()
    name = split.membership()["groups"]["train"]["samples"][5]
    spoil(own, name)
    failed = medtrain("resume", run.maps, "--set", "optimization.num_epochs=4", "--quiet", code=3)
    assert name in failed.stderr and "frame 2 has a value that is not finite" in failed.stderr
    assert (split.checkpoint("last") / "model.safetensors").read_bytes() == before


def test_a_nan_in_published_keypoints_stops_the_run_before_it_begins(tmp_path: Path, medtrain: Any) -> None:
    made = clips()
    made[3].frames[0, 0, 0] = np.inf
    source = write_npz(tmp_path / "data", made)
    failed = medtrain("run", "--plugin", "karsl", "--data", source, "--set", "karsl.signs=1-3", "--out", "r", code=3)
    assert made[3].sample_id in failed.stderr and not (tmp_path / "r").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written_fails_first(folder: Path, tmp_path: Path, medtrain: Any) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    failed = medtrain("run", "--plugin", "karsl", "--data", folder, "--set", SIGNS, "--out", closed / "r", code=2)
    assert "cannot be written" in failed.stderr


def test_a_place_that_is_no_folder_fails_first(folder: Path, tmp_path: Path, medtrain: Any) -> None:
    (tmp_path / "file").write_text("")
    where = tmp_path / "file" / "run"
    failed = medtrain("run", "--plugin", "karsl", "--data", folder, "--set", SIGNS, "--out", where, code=2)
    assert str(tmp_path / "file") in failed.stderr and "epoch" not in failed.stdout


# What each of two processes does, and a single one: evaluate a trained run, and the gradient of one global batch
# with dropout and augmentation off and batch norm at its stored statistics.
WORK = """
import json, sys
import torch
from medtrain import Trainer, build_model
from medtrain.data import Loader
from medtrain.runtime.distributed import join, replicate
from medtrain.protocols.loss import as_terms
from medtrain.training.step import combine
from medtrain_plugins.sign import KArSL
from medtrain_plugins.sign.data.augmentation import ClipAugmentation
from medtrain_plugins.sign.data.dataset import collate
from medtrain_plugins.sign.model.loss import ClassLoss

torch.set_num_threads(1)
maps, out, batch_size = sys.argv[1], sys.argv[2], int(sys.argv[3])
world = join("cpu")
trainer = Trainer.from_maps(maps)
evaluation = trainer.evaluate("test")
settings = {name: getattr(trainer.config.options("karsl"), name) for name in ("signs", "model_size", "frames")}
plain = build_model("karsl", maps, **settings, dropout=0.0)
plain.embedding.input_bn.eval()
for parameter in plain.embedding.input_bn.parameters():
    parameter.requires_grad = False
model = replicate(plain, world, False)
data = KArSL().build_data(trainer.config).test
loader = Loader(data, batch_size, rank=world.rank, world=world.size, collate_fn=collate)
item = next(loader.epoch())
terms = as_terms(ClassLoss()(model(item.batch), item.batch), len(item.batch["sample_id"]), world.device, item.empty)
combine(terms, None, world).backward()
found = {name: p.grad.norm().item() for name, p in plain.named_parameters() if p.grad is not None}
found |= {f"{name} sum": p.grad.sum().item() for name, p in plain.named_parameters() if p.grad is not None}
result = {"metrics": evaluation.metrics, "samples": len(evaluation.rows["sample_id"]), "gradients": found}
with open(f"{out}-{world.rank}.json", "w") as file:
    json.dump(result, file)
"""


def work(tmp_path: Path, maps: Path, world: int, batch_size: int) -> list[Any]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world):
        places = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world,
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": port,
        }
        env = os.environ | {"OMP_NUM_THREADS": "1", **({k: str(v) for k, v in places.items()} if world > 1 else {})}
        arguments = [sys.executable, "-c", WORK, str(maps), str(tmp_path / f"world{world}"), str(batch_size)]
        started.append(subprocess.Popen(arguments, env=env, stderr=subprocess.PIPE, text=True))
    for process in started:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors
    return [json.loads((tmp_path / f"world{world}-{rank}.json").read_text()) for rank in range(world)]


@pytest.mark.acceptance
def test_two_processes_are_one(folder: Path, trainer: Make, tmp_path: Path) -> None:
    # 24 test clips in global batches of 10: the last has 4; of 23 for one rank more than for the other.
    run = trainer("run", folder, SIGNS, "data.batch_size=5", "data.evaluation_batch_size=5").train()
    alone = work(tmp_path, run.maps, 1, 11)[0]
    pair = work(tmp_path, run.maps, 2, 11)
    assert alone["samples"] == 24
    for rank in pair:
        assert rank["metrics"] == pytest.approx(alone["metrics"], abs=1e-6)
    twice = work(tmp_path, run.maps, 1, 22)[0]
    assert pair[0]["gradients"] == pytest.approx(pair[1]["gradients"], rel=1e-6)
    assert pair[0]["gradients"] == pytest.approx(twice["gradients"], rel=2e-4, abs=2e-6)
    assert pair[0]["gradients"] != pytest.approx(alone["gradients"], rel=1e-2)


def test_metrics_know_the_signers_of_a_run_without_data() -> None:
    assert SignMetrics([1, 2], [2]).names[-1] == "top1_signer_02"
