"""What a training step costs beyond its arithmetic: medtrain against the bare PyTorch loop and accelerate.

The same network, data, batch size and optimizer on one CPU thread: 64 volumes of 8^3 in memory, batch 4, Adam, no
clipping, float32. Each contestant runs in a process of its own, in turn, several times; what counts is the best epoch
of each (the machine's speed swings), compared within one session of this script.

    python benchmarks/overhead.py                    five rounds, a table
    python benchmarks/overhead.py --flat 50000       does a step get slower as a run gets longer?
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

SAMPLES, SIZE, BATCH = 64, 8, 4
STEPS = SAMPLES // BATCH


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 1, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(2, 1),
    )


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(SAMPLES) % 2).float()[:, None]
    images = torch.randn(SAMPLES, 1, SIZE, SIZE, SIZE, generator=generator)
    images[:, :, 2:-2, 2:-2, 2:-2] += labels[:, :, None, None, None]
    return images, labels


def bare(epochs: int) -> list[float]:
    from torch.utils.data import DataLoader, TensorDataset

    model, loss_fn = network(), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(*tensors()), batch_size=BATCH, shuffle=True)
    marks = [time.perf_counter()]
    for _ in range(epochs):
        for image, label in loader:
            loss_fn(model(image), label).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        marks.append(time.perf_counter())
    return marks


def accelerate(epochs: int) -> list[float]:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    accelerator, loss_fn, model = Accelerator(cpu=True), nn.BCEWithLogitsLoss(), network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(*tensors()), batch_size=BATCH, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    marks = [time.perf_counter()]
    for _ in range(epochs):
        for image, label in loader:
            accelerator.backward(loss_fn(model(image), label))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        marks.append(time.perf_counter())
    return marks


class Volumes:
    """The tensors as a dataset of dicts."""

    deterministic = True

    def __init__(self) -> None:
        self.images, self.labels = tensors()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index], "sample_id": str(index)}


def medtrain(epochs: int, checkpoint_each: int = 0) -> list[float]:
    from medtrain import Data, Trainer, hookimpl
    from medtrain.config import OptimizationSection
    from medtrain.protocols.model import TensorModel

    marks: list[float] = []

    class Task:
        @hookimpl
        def build_data(self) -> Data:
            return Data(train=Volumes())

        @hookimpl
        def build_model(self) -> nn.Module:
            return TensorModel(network())

        @hookimpl
        def build_loss(self) -> Any:
            loss_fn = nn.BCEWithLogitsLoss()
            return lambda outputs, batch: loss_fn(outputs["logits"], batch["label"])

        @hookimpl
        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.Adam(model.parameters(), lr=1e-3)

        @hookimpl
        def on_run_start(self) -> None:
            marks.append(time.perf_counter())

        @hookimpl
        def on_epoch_end(self) -> None:
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Path(folder) / "run", plugins=[Task()], optimization=OptimizationSection(num_epochs=epochs))
        trainer.config.data.batch_size = BATCH
        trainer.config.checkpoint.last_every_n_epochs = checkpoint_each
        trainer.train()
    return marks


def medtrain_default(epochs: int) -> list[float]:
    """As a run is by default: with a checkpoint, synced to the disk, at the end of every epoch."""
    return medtrain(epochs, 1)


CONTESTANTS = {"bare": bare, "accelerate": accelerate, "medtrain": medtrain}
ALL = {**CONTESTANTS, "medtrain_default": medtrain_default}


def contest(rounds: int, epochs: int) -> None:
    """Interleaved rounds; a table of the best epoch of each contestant."""
    best: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name in CONTESTANTS:
            command = [sys.executable, __file__, "--one", name, "--epochs", str(epochs)]
            marks = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            best[name].append(min(b - a for a, b in pairwise(marks[1:])) / STEPS * 1e6)
    base = min(best["bare"])
    print(f"{'':12}{'best us/step':>14}{'median of bests':>17}{'over bare us':>14}{'ratio':>8}")
    for name, values in best.items():
        low = min(values)
        print(f"{name:12}{low:14.1f}{statistics.median(values):17.1f}{low - base:14.1f}{low / base:8.2f}")


def flatness(steps: int) -> None:
    """Best microseconds per step in each tenth of one long run, for medtrain and the bare loop."""
    for name in ("bare", "medtrain"):
        epochs = steps // STEPS
        command = [sys.executable, __file__, "--one", name, "--epochs", str(epochs)]
        marks = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        each = [(b - a) / STEPS * 1e6 for a, b in pairwise(marks)]
        tenth = len(each) // 10
        shown = " ".join(f"{min(each[i * tenth : (i + 1) * tenth]):7.1f}" for i in range(10))
        print(f"{name:12}{epochs * STEPS} steps, best us/step by tenth: {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--flat", type=int, metavar="STEPS")
    parser.add_argument("--one", choices=ALL, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        print(json.dumps(ALL[arguments.one](arguments.epochs)))
    elif arguments.flat:
        flatness(arguments.flat)
    else:
        contest(arguments.rounds, arguments.epochs)


if __name__ == "__main__":
    main()
