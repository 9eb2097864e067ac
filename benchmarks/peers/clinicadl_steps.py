"""The work of benchmarks/overhead.py by ClinicaDL 2.0; prints the marks at each epoch's end.

python clinicadl_steps.py lean|default EPOCHS        lean: no bar, logs, monitor or checkpoints

Its samples are made once, before the clock starts, which is the best case of its data path.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import clinicadl.train
import pandas as pd
import torch
import torchio
from clinicadl.callbacks import (
    Callback,
    LoggerCallback,
    ModelCheckpointCallback,
    MonitorCallback,
    TrainingCheckpointCallback,
)
from clinicadl.data.datasets import Dataset
from clinicadl.data.structures import Sample
from clinicadl.io.bids import BidsFileType
from clinicadl.losses.config import BCEWithLogitsLossConfig
from clinicadl.models import SupervisedModel
from clinicadl.optim import OptimizationConfig
from clinicadl.optim.optimizers.config import AdamConfig
from clinicadl.split import Split

sys.path.insert(0, str(Path(__file__).parents[1]))
from overhead import BATCH, network, tensors


class InMemory(Dataset):
    """Samples in memory; the library has no such data set, so this is what a user would write."""

    def __init__(self, prefix: str, count: int | None = None) -> None:
        images, labels = tensors()
        kind = BidsFileType(data_type="anat", suffix="T1w")
        count = len(images) if count is None else count
        people = [f"sub-{prefix}{number:04d}" for number in range(count)]
        self._df = pd.DataFrame({"participant_id": people, "session_id": "ses-M000"})
        self.eval_mode = False
        self.samples = [
            Sample(
                image=torchio.ScalarImage(tensor=images[number]),
                participant_id=people[number],
                session_id="ses-M000",
                file_type=kind,
                image_path="image.nii.gz",
                label=float(labels[number]),
            )
            for number in range(count)
        ]

    def eval(self) -> None:
        self.eval_mode = True

    def train(self) -> None:
        self.eval_mode = False

    def get_sample_info(self, index: int, column: str) -> Any:
        return self._df.at[index, column]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def to_json(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError


class Marks(Callback):
    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_epoch_start(self, *, state: Any, **_: Any) -> None:
        if state.current_epoch == 1:
            self.marks.append(time.perf_counter())

    def on_epoch_end(self, **_: Any) -> None:
        self.marks.append(time.perf_counter())

    def state_dict(self) -> dict[str, Any]:
        return {}


def main(kind: str, epochs: int) -> list[float]:
    split = Split(index=0, train_dataset=InMemory("T"), val_dataset=InMemory("V", 4))
    split.build_train_loader(batch_size=BATCH, pin_memory=False)
    split.build_val_loader(batch_size=BATCH, pin_memory=False)
    marks = Marks()
    callbacks: list[Callback] = [marks, ModelCheckpointCallback(save_last=False)]
    if kind == "lean":
        callbacks += [
            LoggerCallback(save_logs=False, debug=False, progress_bar=False),
            MonitorCallback(enabled=False),
            TrainingCheckpointCallback(enabled=False),
        ]
    model = SupervisedModel(network=network(), loss=BCEWithLogitsLossConfig(), optimizer=AdamConfig(lr=1e-3))
    with tempfile.TemporaryDirectory() as folder:
        trainer = clinicadl.train.Trainer(
            maps=folder + "/maps",
            model=model,
            optimization=OptimizationConfig(num_epochs=epochs, evaluation_interval=10**6),
            callbacks=callbacks,
        )
        trainer.train(
            split,
            computational=clinicadl.train.ComputationalConfig(gpu=False, amp=False, channels_last=False, seed=0),
        )
    return marks.marks


if __name__ == "__main__":
    torch.set_num_threads(1)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        found = main(sys.argv[1], int(sys.argv[2]))
    print(json.dumps(found))
