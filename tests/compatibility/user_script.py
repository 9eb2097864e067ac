"""Trainings as Python users write them: `user_script.py NAME` trains into the folder `run`, or goes on there.

`user_script.py resume NAME SPLIT` is the fresh session that resumes a split of it from what is recorded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from interrupting import Interrupt
from medtrain import (
    BatchMetric,
    ComputationalConfig,
    Data,
    EarlyStoppingCallback,
    KFold,
    LRSchedulerCallback,
    ModelCheckpointCallback,
    OptimizationConfig,
    SingleSplit,
    Split,
    SupervisedModel,
    TensorModel,
    Trainer,
    TrainingCheckpointCallback,
    make_kfold,
    make_split,
    seed_everything,
)
from medtrain.data import Joined
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler
from user_objects import Brier, Drift, Network, Pairs, Plugin, TwoTerms, Volumes, accuracy, make_network, two_terms

RUN = Path("run")
# What a run directory does not give back, and is given again: functions, and metrics made of them.
FUNCTIONS = {
    "model": make_network,
    "loss": two_terms,
    "metrics": {
        "accuracy": accuracy,
        "sharpness": BatchMetric("sharpness", nn.functional.l1_loss, "logits", "label", mode="min"),
    },
}


def table(volumes: Volumes) -> Any:
    import pandas as pd

    return pd.DataFrame({"participant_id": volumes.participants, "session_id": volumes.sessions})


def single() -> None:
    """A held-out split from tables, every callback there is, functions for model, loss and metrics."""
    volumes = Volumes(32)
    if not Path("split").exists():
        make_split(table(volumes), n_test=0.25, output_dir=".", subset_name="validation", longitudinal=True, seed=1)
    callbacks = [
        EarlyStoppingCallback("accuracy", patience=9),
        EarlyStoppingCallback(["loss", "sharpness"], patience=[5, 7], upper_bound=[90.0, None], when="all"),
        ModelCheckpointCallback(metric=["accuracy", "loss"], epochs=[1], top_k=2),
        TrainingCheckpointCallback(every_n_steps=2),
        LRSchedulerCallback("ReduceLROnPlateau", metric="accuracy", patience=0, factor=0.5),
        Drift(),
        Interrupt(),
    ]
    optimization = OptimizationConfig(num_epochs=4, ema_decay=0.8, clip_grad_norm=1.0)
    trainer = Trainer(RUN, optimization=optimization, callbacks=callbacks, **FUNCTIONS)
    split = SingleSplit("split").get_split(volumes)
    split.build_train_loader(batch_size=4)
    trainer.train(split, computational=ComputationalConfig(gpu=False, seed=7, deterministic=True))


def folds() -> None:
    """Three folds from tables, a network of torch's layers and a loss of torch's, a metric of one's own."""
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 1))
    volumes = Volumes(24)
    if not Path("3_fold").exists():
        make_kfold(table(volumes), n_splits=3, output_dir=".", seed=1)
    trainer = Trainer(
        RUN,
        layers,
        [Brier()],
        OptimizationConfig(num_epochs=3, accumulation_steps=2, learning_rate=0.01),
        [TrainingCheckpointCallback(every_n_steps=1), LRSchedulerCallback("OneCycleLR", max_lr=0.02), Interrupt()],
        loss=nn.BCEWithLogitsLoss(),
    )
    for split in KFold("3_fold").get_splits(volumes):
        status = RUN / f"split-{split.index}" / "status.json"
        if status.exists() and json.loads(status.read_text())["status"] == "completed":
            continue
        split.build_train_loader(batch_size=2)
        split.build_val_loader(batch_size=4)
        trainer.train(split)


def loaders() -> None:
    """Ready-made loaders of tuples, drawn by weight, under a seed of the script; a network of a class."""
    seed_everything(11)
    train, held_out = Pairs(20), Pairs(10, first=100)
    sampler = WeightedRandomSampler([1.0, 2.0] * 10, 20)
    split = Split.of(DataLoader(train, batch_size=4, sampler=sampler), DataLoader(held_out, batch_size=5))
    callbacks = [TrainingCheckpointCallback(every_n_steps=3), LRSchedulerCallback("ExponentialLR", gamma=0.8)]
    trainer = Trainer(
        RUN,
        SupervisedModel(Network(), nn.BCEWithLogitsLoss()),
        [Brier()],
        OptimizationConfig(num_epochs=3, optimizer="SGD", options={"momentum": 0.9}),
        [*callbacks, Interrupt()],
    )
    trainer.train(split)


def objects() -> None:
    """Data of joined datasets, a loss of the contract, a plugin given as an object."""
    torch.manual_seed(4)
    data = Data(
        train=Joined([Volumes(12), Volumes(8, first=40)]), validation=Volumes(8, first=60), test=Volumes(6, first=80)
    )
    trainer = Trainer(
        RUN,
        TensorModel(Network(width=2)),
        [Brier()],
        OptimizationConfig(num_epochs=3),
        [TrainingCheckpointCallback(every_n_steps=2), Interrupt()],
        [Plugin(gamma=0.95)],
        loss=TwoTerms(),
    )
    trainer.train(data)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "resume":
        again = FUNCTIONS if sys.argv[2] == "single" else {}
        Trainer.from_maps(RUN, **again).resume(split_idx=int(sys.argv[3]))
    else:
        {"single": single, "folds": folds, "loaders": loaders, "objects": objects}[sys.argv[1]]()
