"""The Python API as its training page shows it, on objects a user brings along."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import medtrain
import pytest
import torch
from medtrain import (
    ComputationalConfig,
    OptimizationConfig,
    Split,
    SupervisedModel,
    Trainer,
    seed_everything,
    seed_everything_context,
)
from medtrain.data.split import Part
from medtrain.errors import ConfigError, DataError, UsageError
from medtrain.rundir.directory import Maps
from medtrain.testing import ToyVolumes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler


class Scaled(nn.Module):
    """A network with a parameter and a buffer that `reset_parameters` does not know."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.size = size
        self.scale = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(size**3, affine=False)
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.linear = nn.Linear(size**3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return self.linear(self.norm(image.flatten(1))) * self.scale


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(512, 4), nn.ReLU(), nn.Linear(4, 1))


def supervised() -> SupervisedModel:
    return SupervisedModel(network(), nn.BCEWithLogitsLoss())


def halves(index: int = 0, size: int = 8) -> Split:
    """A split of the toy volumes by participant; the second one swaps its sides."""
    volumes = ToyVolumes(24, size)
    sides = [Part(volumes, range(16)), Part(volumes, range(16, 24))]
    return Split.of(sides[index], sides[1 - index], index=index)


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def test_a_first_training(tmp_path: Path) -> None:
    trainer = Trainer(maps=tmp_path / "maps_directory", model=supervised())
    result = trainer.train(halves())
    assert result.epochs == 10 and result.best_checkpoint.is_dir()
    assert result.metrics["train/loss"] < 0.6


def test_every_fold_of_a_splitter(tmp_path: Path) -> None:
    medtrain.make_kfold(table(ToyVolumes(24)), n_splits=3, output_dir=tmp_path, seed=1)
    splitter = medtrain.KFold(tmp_path / "3_fold")
    trainer = Trainer(tmp_path / "run", supervised(), optimization=OptimizationConfig(num_epochs=1))
    for split in splitter.get_splits(ToyVolumes(24)):
        split.build_train_loader(batch_size=8, shuffle=True)
        split.build_val_loader(batch_size=8)
        trainer.train(split)
    folders = Maps.open(tmp_path / "run").splits()
    assert [folder.number for folder in folders] == [0, 1, 2]
    assert all(folder.status()["status"] == "completed" and folder.status()["step"] == 2 for folder in folders)
    held_out = [set(folder.membership()["groups"]["validation"]["participants"]) for folder in folders]
    assert sum(map(len, held_out)) == len(set().union(*held_out)) == 12


def table(volumes: ToyVolumes) -> Any:
    import pandas as pd

    return pd.DataFrame(
        {"participant_id": volumes.participants, "session_id": ["ses-1", "ses-2"] * 12}
    ).drop_duplicates()


def test_the_optimization_is_what_was_asked(tmp_path: Path) -> None:
    asked = OptimizationConfig(num_epochs=5, accumulation_steps=2, evaluation_interval=5)
    split = halves()
    split.build_train_loader(batch_size=2)
    Trainer(maps=tmp_path / "run", model=supervised(), optimization=asked).train(split)
    history = Maps.open(tmp_path / "run").split(0).history()
    assert [record["step"] for record in history] == [4, 8, 12, 16, 20]
    assert ["validation/loss" in record for record in history] == [False] * 4 + [True]


def test_a_gpu_that_is_not_there_is_told_once_and_recorded(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    asked = ComputationalConfig(gpu=True, amp=True, seed=42, deterministic=True)
    trainer = Trainer(tmp_path / "run", supervised(), optimization=OptimizationConfig(num_epochs=1))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        trainer.train(halves(), computational=asked)
    assert [str(w.message) for w in seen if "gpu" in str(w.message)] == [
        "gpu=True, but torch sees no GPU: training on the CPU"
    ]
    folder = Maps.open(tmp_path / "run").split(0)
    assert folder.inputs.setup() | {"device": "cpu", "gpu": None} == folder.inputs.setup()
    text = folder.config_file.read_text()
    assert "seed = 42" in text and "deterministic = true" in text
    torch.use_deterministic_algorithms(False)


def test_a_split_trained_on_a_gpu_is_not_resumed_without_one_unless_told(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    trainer = Trainer(tmp_path / "run", supervised(), optimization=OptimizationConfig(num_epochs=1))
    trainer.train(halves())
    folder = Maps.open(tmp_path / "run").split(0)
    folder.inputs.write(folder.config_file.read_text(), folder.inputs.setup() | {"device": "cuda", "gpu": "Model 1"})
    with pytest.raises(ConfigError, match=r"trained on a GPU \(Model 1\), and torch sees none here; .*gpu=False"):
        trainer.extend(2)
    assert trainer.extend(2, computational=ComputationalConfig(gpu=False)).epochs == 2


FRESH = """
from medtrain import Trainer
trainer = Trainer.from_maps("maps_directory")
result = trainer.resume(split_idx=0)
print(result.epochs)
"""
KILLED = """
import os, signal
import torch
from torch import nn
import test_python_api as page
from medtrain import OptimizationConfig, SupervisedModel, Trainer

class Kill:
    def on_step_end(self, run):
        if {at} and run.step == {at}:
            os.kill(os.getpid(), signal.SIGKILL)

torch.manual_seed(0)
layers = nn.Sequential(nn.Flatten(), nn.Linear(512, 4), nn.Dropout(0.5), nn.Linear(4, 1))
model = SupervisedModel(layers, nn.BCEWithLogitsLoss())
optimization = OptimizationConfig(num_epochs=4)
Trainer("{name}", model, optimization=optimization, callbacks=[Kill()]).train(page.halves())
"""


def test_a_killed_training_goes_on_in_a_fresh_session(tmp_path: Path) -> None:
    def python(code: str) -> subprocess.CompletedProcess[str]:
        import os

        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True, capture_output=True, check=False
        )

    assert python(KILLED.format(at=5, name="maps_directory")).returncode == -9
    told = python(FRESH)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split()[-1] == "4"
    whole = python(KILLED.format(at=0, name="whole"))
    assert whole.returncode == 0, whole.stderr
    one, other = tmp_path / "maps_directory" / "split-0", tmp_path / "whole" / "split-0"
    assert (one / "history.jsonl").read_bytes() == (other / "history.jsonl").read_bytes()
    a, b = weights(one / "last"), weights(other / "last")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_split_starts_from_the_same_weights_and_buffers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SupervisedModel(Scaled(), nn.BCEWithLogitsLoss())
    starts: list[dict[str, torch.Tensor]] = []

    class Look:
        def on_run_start(self, run: Any) -> None:
            tensors = [*run.model.named_parameters(), *run.model.named_buffers()]
            starts.append({name: tensor.detach().clone() for name, tensor in tensors})

    given = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = Trainer(
        tmp_path / "run",
        model,
        optimization=OptimizationConfig(num_epochs=2),
        optimizer=given,
        scheduler=torch.optim.lr_scheduler.StepLR(given, 1, 0.1),
        callbacks=[Look()],
    )
    results = [trainer.train(halves(0)), trainer.train(halves(1))]
    assert not torch.equal(model.module.scale, starts[0]["scale"])  # trained in place
    assert starts[0].keys() == starts[1].keys() >= {"scale", "norm.running_mean", "seen"}
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    rates = [record["learning_rate"] for record in Maps.open(tmp_path / "run").split(1).history()]
    assert rates == pytest.approx([0.01, 0.001])
    alone = SupervisedModel(Scaled(), nn.BCEWithLogitsLoss())
    alone.module.load_state_dict(starts[0], strict=False)
    optimizer = torch.optim.Adam(alone.parameters(), lr=0.01)
    second = Trainer(
        tmp_path / "alone",
        alone,
        optimization=OptimizationConfig(num_epochs=2),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1),
    ).train(halves(1))
    a, b = weights(results[1].best_checkpoint), weights(second.best_checkpoint)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_ready_made_loaders(tmp_path: Path) -> None:
    volumes = ToyVolumes(24)
    data = TensorDataset(volumes.images, volumes.labels)
    sampler = WeightedRandomSampler([1.0] * 12 + [0.0] * 12, 24)
    train = DataLoader(data, batch_size=6, sampler=sampler)
    seen: set[str] = set()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
            if self.training:
                seen.update(batch["sample_id"])
            return {"logits": self.net(batch["image"])}

    trainer = Trainer(
        tmp_path / "run",
        Net(),
        loss=lambda outputs, batch: outputs["logits"].sub(batch["label"].view(-1, 1)).square().mean(),
        optimization=OptimizationConfig(num_epochs=3),
    )
    trainer.train(Split.of(train, DataLoader(TensorDataset(volumes.images[:4], volumes.labels[:4]), batch_size=2)))
    assert seen and seen <= {f"train-{i}" for i in range(12)}
    folder = Maps.open(tmp_path / "run").split(0)
    assert folder.history()[-1]["step"] == 12
    text = folder.config_file.read_text()
    assert 'sampling = "weighted"' in text and "batch_size = 6" in text and "evaluation_batch_size = 2" in text
    with pytest.raises(DataError, match="draws by _Every, which cannot be continued"):
        Split.of(DataLoader(data, sampler=_Every()))


class _Every(torch.utils.data.Sampler[int]):
    def __iter__(self) -> Any:
        return iter(range(4))

    def __len__(self) -> int:
        return 4


def test_integer_labels_and_class_weights(tmp_path: Path) -> None:
    volumes = ToyVolumes(24)
    data = TensorDataset(volumes.images, volumes.labels.long())
    net = nn.Sequential(nn.Flatten(), nn.Linear(512, 2))
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    result = Trainer(tmp_path / "run", net, loss=loss, optimization=OptimizationConfig(num_epochs=1)).train(
        Split.of(data)
    )
    assert result.metrics["train/loss"] > 0
    outputs, batch = {"logits": torch.randn(6, 2)}, {"label": torch.tensor([0, 1, 1, 0, 1, 0])}
    total, weight = medtrain.SupervisedModel(net, loss).as_loss()(outputs, batch)
    assert torch.allclose(total / weight, loss(outputs["logits"], batch["label"]))
    assert float(weight) == 12.0


def test_the_same_call_again_goes_on_and_a_finished_split_is_kept(tmp_path: Path) -> None:
    def trainer(**changes: Any) -> Trainer:
        torch.manual_seed(0)
        optimization = OptimizationConfig(num_epochs=4, **changes)
        return Trainer(
            tmp_path / "run", supervised(), optimization=optimization, callbacks=changes.pop("callbacks", ())
        )

    class Fail:
        def on_epoch_start(self, run: Any) -> None:
            if run.epoch == 2:
                raise RuntimeError("no power")

    torch.manual_seed(0)
    optimization = OptimizationConfig(num_epochs=4)
    with pytest.raises(medtrain.errors.HookError, match="no power"):
        Trainer(tmp_path / "run", supervised(), optimization=optimization, callbacks=[Fail()]).train(halves())
    assert trainer().train(halves()).epochs == 4
    log = (tmp_path / "run" / "split-0" / "log.txt").read_text()
    assert "resumed at epoch 2" in log
    with pytest.raises(UsageError, match="already holds a run that is complete"):
        trainer().train(halves())
    with pytest.raises(
        UsageError, match=r"another configuration.*\n.*optimization.learning_rate = 0.001 there, 0.1 here"
    ):
        trainer(learning_rate=0.1).train(halves())
    torch.manual_seed(0)
    again = Trainer(tmp_path / "run", supervised(), optimization=optimization, overwrite=True).train(halves())
    whole = Trainer(tmp_path / "whole", supervised(), optimization=optimization)
    assert again.epochs == 4 and whole.path is not None


def test_a_refused_split_leaves_nothing_behind(tmp_path: Path) -> None:
    volumes = ToyVolumes(24)
    leaking = Split.of(Part(volumes, range(16)), Part(volumes, range(15, 24)))
    trainer = Trainer(tmp_path / "run", supervised(), optimization=OptimizationConfig(num_epochs=1))
    with pytest.raises(DataError, match="repeated"):
        trainer.train(leaking)
    assert not (tmp_path / "run").exists()
    trainer.train(halves(0))
    with pytest.raises(DataError, match="participant"):
        trainer.train(Split.of(Part(volumes, range(0, 24, 2)), Part(volumes, range(1, 24, 2)), index=1))
    assert [folder.number for folder in Maps.open(tmp_path / "run").splits()] == [0]
    with pytest.raises(DataError, match="were used to fit this model"):
        trainer.test("test", split=medtrain.Data(test=Part(volumes, range(4))))
    assert trainer.train(halves(1)).split == 1
    assert Trainer.from_maps(tmp_path / "run").validate(1).metrics["loss"] > 0


def test_what_cannot_be_rebuilt_is_asked_for(tmp_path: Path) -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.net(image)

    data = Split.of(TensorDataset(*(lambda v: (v.images, v.labels))(ToyVolumes(8))))
    one = OptimizationConfig(num_epochs=1)
    Trainer(tmp_path / "run", SupervisedModel(Local(), nn.BCEWithLogitsLoss()), optimization=one).train(data)
    with pytest.raises(UsageError, match=r"Local.* cannot be imported by its path .*; give model="):
        Trainer.from_maps(tmp_path / "run")
    again = Trainer.from_maps(tmp_path / "run", model=SupervisedModel(Local(), nn.BCEWithLogitsLoss()))
    with pytest.raises(UsageError, match=r"not recorded .*TensorDataset.*; give them as split="):
        again.extend(2)
    assert again.extend(2, split=data).epochs == 2


def test_a_seed_for_everything_and_back() -> None:
    torch.manual_seed(3)
    before = torch.rand(1)
    torch.manual_seed(3)
    with seed_everything_context(7, deterministic=True) as seed:
        first = torch.rand(2)
        assert seed == 7 and torch.are_deterministic_algorithms_enabled()
        assert Trainer(model=supervised()).config.run.seed == 7
        assert Trainer(model=supervised()).config.computational.deterministic
    assert torch.equal(torch.rand(1), before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert Trainer(model=supervised()).config.run.seed == 0
    with seed_everything_context(7):
        assert torch.equal(torch.rand(2), first)
        seed_everything(8)
        assert Trainer(model=supervised()).config.run.seed == 8


def test_what_a_run_records_of_its_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", "--allow-empty"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("a,b\n")
    trainer = Trainer(tmp_path / "run", supervised(), optimization=OptimizationConfig(num_epochs=1))
    trainer.config.data.table = tmp_path / "table.csv"
    trainer.train(halves())
    maps = Maps.open(tmp_path / "run")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert maps.environment()["git"] == {"commit": head.strip(), "changed": False}
    assert maps.split(0).inputs.setup()["table_sha256"] == hashlib.sha256(b"a,b\n").hexdigest()


def test_warnings_of_users_are_seen(tmp_path: Path) -> None:
    class Grumbling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            warnings.warn("dim images", UserWarning, stacklevel=1)
            return self.net(image)

    trainer = Trainer(
        tmp_path / "run", SupervisedModel(Grumbling(), nn.MSELoss()), optimization=OptimizationConfig(num_epochs=1)
    )
    with pytest.warns(UserWarning, match="dim images"):
        trainer.train(halves())
