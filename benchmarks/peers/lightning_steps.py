"""The work of benchmarks/overhead.py by Lightning; prints the marks at each epoch's end.

python lightning_steps.py lean|default EPOCHS        lean: no logger, checkpoints, bar or summary
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from overhead import BATCH, network, tensors


class Task(lightning.LightningModule):
    def __init__(self, logs: bool) -> None:
        super().__init__()
        self.net, self.loss, self.logs = network(), nn.BCEWithLogitsLoss(), logs

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self.loss(self.net(batch[0]), batch[1])
        if self.logs:
            self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Marks(lightning.Callback):
    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_start(self, *_: Any) -> None:
        self.marks.append(time.perf_counter())

    def on_train_epoch_end(self, *_: Any) -> None:
        self.marks.append(time.perf_counter())


def main(kind: str, epochs: int) -> list[float]:
    off = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    marks = Marks()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            callbacks=[marks],
            default_root_dir=folder,
            **(off if kind == "lean" else {}),
        )
        trainer.fit(Task(kind == "default"), DataLoader(TensorDataset(*tensors()), batch_size=BATCH, shuffle=True))
    return marks.marks


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        found = main(sys.argv[1], int(sys.argv[2]))
    print(json.dumps(found))
