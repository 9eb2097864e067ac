"""Runs of the toy plugin inside the test process."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain import Trainer
from medtrain.config import Layers
from medtrain.plugins import Plugins
from medtrain.rundir.directory import Maps
from safetensors.torch import load_file
from torch.multiprocessing import ProcessRaisedException, start_processes


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy_config(*assignments: str, plugins: tuple[str, ...] = ("toy_plugin",)) -> Any:
    """The toy's configuration: two epochs on the CPU, and these `key=value` changes."""
    layers = Layers()
    layers.add({"run": {"plugins": list(plugins)}, "optimization": {"num_epochs": 2}}, "test")
    layers.add({"computational": {"device": "cpu"}}, "test")
    for assignment in assignments:
        layers.add_assignment(assignment, plugins)
    return layers.build(Plugins.of(plugins).options())


@pytest.fixture
def config() -> Callable[..., Any]:
    """`config("data.batch_size=4")` is a validated configuration of the toy."""
    return toy_config


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """`trainer("run", "data.batch_size=4", callbacks=[...])` is a Trainer of the toy on that folder."""

    def make(name: str, *assignments: str, callbacks: Any = (), **given: Any) -> Trainer:
        return Trainer(tmp_path / name, config=toy_config(*assignments), callbacks=callbacks, **given)

    return make


@pytest.fixture
def toy_run(trainer: Callable[..., Trainer]) -> Callable[..., Path]:
    """`toy_run("data.batch_size=4", name="a")` trains the toy and gives its run directory."""

    def train(*assignments: str, name: str = "run", **given: Any) -> Path:
        return trainer(name, *assignments, **given).train().maps

    return train


@pytest.fixture
def forked() -> Callable[..., None]:
    """`forked(lambda: trainer("run").train(), ranks=2)` runs it as each rank of a run on the CPU.

    The processes are forks of the test's, so that objects and patches of the test hold in them, and nothing they do to
    torch holds in the test. What one of them raises is raised here, as torch.multiprocessing.ProcessRaisedException.
    """

    for module in ("accelerate", "torch._dynamo"):  # DDP imports both: once, not in each process
        import_module(module)

    def run(function: Callable[[], Any], ranks: int = 1) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]

        def rank(number: int) -> None:
            place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            os.environ.update({name: str(value) for name, value in place.items()})
            os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
            function()

        processes = start_processes(rank, nprocs=ranks, join=False, daemon=True, start_method="fork")
        try:
            while not processes.join(grace_period=1):  # a rank whose peer failed may wait for it in C++
                pass
        except ProcessRaisedException as error:
            if "Autograd-and-Fork" in str(error):
                pytest.skip("an earlier test used a GPU or torch.compile: autograd cannot be forked any more")
            raise

    return run


@pytest.fixture
def outcome() -> Callable[[Path], dict[str, Any]]:
    """What has to be the same, bit for bit, in two runs: the history's text and every weight."""

    def read(run: Path) -> dict[str, Any]:
        split = Maps.open(run).split(0)
        found: dict[str, Any] = {"history": (split.path / "history.jsonl").read_text()}
        for name in ("last", "best-fit"):
            path = split.checkpoint(name)
            if path.is_dir():
                found[name] = {k: v.tolist() for k, v in load_file(path / "model.safetensors").items()}
                state = json.loads((path / "state.json").read_text())
                found[f"{name} state"] = state
                found[f"{name} tensors"] = {k: v.tolist() for k, v in load_file(path / "state.safetensors").items()}
        return found

    return read
