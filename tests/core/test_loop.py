"""One step and one epoch: weighted sums, accumulation, clipping, precision, averages, frozen parts, divergence."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain import Run, TensorModel, hookimpl
from medtrain.config import RunConfig, SchedulerSection
from medtrain.data import Loader
from medtrain.errors import ConfigError, DivergedError
from medtrain.protocols.loss import as_terms
from medtrain.protocols.model import TensorModel as Adapter
from medtrain.protocols.model import evaluation_mode, move_batch, training_mode, unwrap
from medtrain.protocols.schedule import Plan
from medtrain.rundir.directory import Maps
from medtrain.runtime.determinism import StepSeeder
from medtrain.runtime.distributed import World
from medtrain.training.engine import Engine
from medtrain.training.evaluation import batches, evaluate_group
from medtrain.training.step import train_steps
from medtrain.training.totals import Totals
from medtrain_plugins.standard.schedules import WarmupSchedule
from safetensors.torch import load_file
from torch import nn
from toy_plugin import Fit, MaskedLoss, Vectors


class Doubles(Vectors):
    """The toy's vectors in double precision."""

    def __init__(self, count: int) -> None:
        super().__init__(0, count)
        self.features, self.targets, self.masks = (t.double() for t in (self.features, self.targets, self.masks))


def network() -> TensorModel:
    torch.manual_seed(0)
    return TensorModel(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double(), input="features")


def engine(model: nn.Module | None = None, loss: Any = None, rate: float = 0.5, **settings: Any) -> Engine:
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return Engine(
        model=model,
        plain=model,
        loss=loss or MaskedLoss(),
        optimizer=optimizer,
        schedule=WarmupSchedule(SchedulerSection(), optimizer, Plan(1, 1, "fit", "max")),
        world=World(),
        seeder=StepSeeder(0, 0, torch.device("cpu")),
        **settings,
    )


def epoch(built: Engine, batch_size: int, count: int = 23) -> tuple[Run, Totals]:
    run = Run(RunConfig(), unwrap(built.plain), torch.device("cpu"))
    totals = Totals()
    loader = Loader(Doubles(count), batch_size, seed=0, shuffle=True)
    for _ in train_steps(run, built, loader, totals):
        pass
    return run, totals


def weights(built: Engine) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in built.plain.parameters()]


def mean_loss(outputs: dict[str, Any], batch: dict[str, Any]) -> torch.Tensor:
    return ((outputs["logits"] - batch["target"]) ** 2).mean()


@pytest.mark.parametrize("loss", [MaskedLoss(), mean_loss], ids=["masked", "mean"])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulated_batches_equal_one_big_batch(loss: Any, micro: int) -> None:
    """23 samples in steps of 8: uneven masks, batches without a label, and a short last window."""
    big, small = engine(loss=loss), engine(loss=loss, accumulation_steps=8 // micro)
    start = copy.deepcopy(weights(big))
    big_run, big_totals = epoch(big, 8)
    small_run, small_totals = epoch(small, micro)
    assert big_run.step == small_run.step == 3
    for before, one, other in zip(start, weights(big), weights(small), strict=True):
        assert not torch.equal(before, one)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    assert big_totals.means(World()) == pytest.approx(small_totals.means(World()), rel=1e-12)


def test_per_batch_denominators_would_differ() -> None:
    """The control of the test above: averaging the batches' own means is another gradient."""

    def averaged(outputs: dict[str, Any], batch: dict[str, Any]) -> torch.Tensor:
        terms = MaskedLoss()(outputs, batch)
        return sum(total / max(1.0, float(weight)) for total, weight in terms.values())

    big, small = engine(), engine(loss=averaged, accumulation_steps=4)
    epoch(big, 8)
    epoch(small, 2)
    assert max((a - b).abs().max().item() for a, b in zip(weights(big), weights(small), strict=True)) > 1e-3


def test_the_loss_of_an_epoch_is_the_sum_over_the_weight() -> None:
    built = engine(rate=1e-12)
    _, totals = epoch(built, 5)
    dataset = Doubles(23)
    batch = {"features": dataset.features, "target": dataset.targets, "mask": dataset.masks}
    terms = MaskedLoss()(built.plain(batch), batch)
    wanted = {name: (total / weight).item() for name, (total, weight) in terms.items()}
    means = totals.means(World())
    assert means["loss_risk"] == pytest.approx(wanted["risk"], rel=1e-9)
    assert means["loss_size"] == pytest.approx(wanted["size"], rel=1e-9)
    assert means["loss"] == pytest.approx(sum(wanted.values()), rel=1e-9)


def test_a_term_without_a_method_weights_cannot_be_accumulated() -> None:
    def pairs(outputs: dict[str, Any], batch: dict[str, Any]) -> Any:
        return MaskedLoss()(outputs, batch)

    epoch(engine(loss=pairs), 8)
    with pytest.raises(ConfigError, match=r"accumulation_steps: the loss returns its term 'risk' .* weights\(batch\)"):
        epoch(engine(loss=pairs, accumulation_steps=2), 4)


def test_batches_without_any_label_count_nothing() -> None:
    built = engine()
    dataset = Doubles(4)
    dataset.masks.zero_()
    before = copy.deepcopy(weights(built))
    run, totals = Run(RunConfig(), built.plain, torch.device("cpu")), Totals()
    for _ in train_steps(run, built, Loader(dataset, 2), totals):
        pass
    assert totals.means(World()) == {"loss": 0.0, "loss_risk": 0.0, "loss_size": 0.0}
    for one, other in zip(before, weights(built), strict=True):
        assert torch.equal(one, other)


def test_no_batch_at_all_has_no_loss() -> None:
    assert math.isnan(Totals().means(World())["loss"])


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_are_clipped_after_unscaling_and_the_norm_is_logged(scaled: bool) -> None:
    limit = 0.01
    model = network().float() if scaled else network()
    built = engine(model, clip_grad_norm=limit)
    if scaled:
        built.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    dataset = Vectors(0, 8) if scaled else Doubles(8)
    batch = {"features": dataset.features, "target": dataset.targets, "mask": dataset.masks}
    twin = copy.deepcopy(model)
    sum(total / weight for total, weight in MaskedLoss()(twin(batch), batch).values()).backward()
    norm = torch.stack([p.grad.norm() for p in twin.parameters()]).norm()  # type: ignore[union-attr]
    before = copy.deepcopy(weights(built))
    run, totals = Run(RunConfig(), built.plain, torch.device("cpu")), Totals()
    for _ in train_steps(run, built, Loader(dataset, 8), totals):
        pass
    assert totals.means(World())["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    moved = torch.stack([(a - b).norm() for a, b in zip(before, weights(built), strict=True)]).norm()
    assert float(norm) > limit
    assert float(moved) == pytest.approx(0.5 * limit, rel=1e-3)


def test_the_kind_of_norm_is_a_choice() -> None:
    built = engine(clip_grad_norm=1e9, clip_norm_type=math.inf)
    _, totals = epoch(built, 23)
    other = engine(clip_grad_norm=1e9)
    _, euclidean = epoch(other, 23)
    assert 0 < totals.means(World())["grad_norm"] < euclidean.means(World())["grad_norm"]


class Watch:
    """Notes the type of the model's outputs, and the mode of its parts while it trains."""

    def __init__(self) -> None:
        self.types: set[torch.dtype] = set()

    @hookimpl
    def on_run_start(self, run: Run) -> None:
        run.model.register_forward_hook(lambda module, args, output: self.types.add(output.dtype))


@pytest.mark.parametrize(("amp", "wanted"), [("bf16", torch.bfloat16), ("no", torch.float32), ("auto", torch.float32)])
def test_precision(toy_run: Callable[..., Path], amp: str, wanted: torch.dtype) -> None:
    watch = Watch()
    run = toy_run(f"computational.amp={amp}", "optimization.num_epochs=1", callbacks=[watch])
    assert watch.types == {wanted}
    history = Maps.open(run).split(0).history()
    assert math.isfinite(history[0]["train/loss"]) and math.isfinite(history[0]["validation/fit"])
    stored = load_file(run / "split-0" / "last" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_half_precision_needs_a_gpu(toy_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'fp16' needs a GPU"):
        toy_run("computational.amp=fp16")
    assert not (tmp_path / "run").exists()


def test_the_moving_average_is_what_is_evaluated(trainer: Callable[..., Any]) -> None:
    changes = ("optimization.ema_decay=0.9", "optimization.learning_rate=0.05")
    made = trainer("run", *changes)
    run = made.train().maps
    last = run / "split-0" / "last"
    average = load_file(last / "model.safetensors")
    training = {
        key.removeprefix("/ema/training_model/"): value
        for key, value in load_file(last / "state.safetensors").items()
        if key.startswith("/ema/training_model/")
    }
    assert average.keys() == training.keys()
    assert any(not torch.equal(average[key], training[key]) for key in average)
    history = Maps.open(run).split(0).history()
    evaluation = made.evaluate("validation", checkpoint="last")
    assert evaluation.metrics["fit"] == history[-1]["validation/fit"]
    plain = trainer("plain", changes[1]).train().maps
    assert Maps.open(plain).split(0).history()[-1]["validation/fit"] != history[-1]["validation/fit"]


class Frozen(nn.Module):
    """A frozen encoder with statistics and dropout before a trainable head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.encoder.requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.encoder(x)))


def test_frozen_means_frozen(toy_run: Callable[..., Path]) -> None:
    net = Frozen()
    before = copy.deepcopy(net.state_dict())
    toy_run(model=Adapter(net, input="features"))
    after = net.state_dict()
    for key, value in before.items():
        assert torch.equal(value, after[key]) == key.startswith("encoder"), key
    training_mode(net)
    assert not any(module.training for module in net.encoder.modules())
    assert net.norm.training and net.head.training


@pytest.mark.parametrize("step", [1, 60])
def test_a_loss_that_is_not_finite_ends_the_run(toy_run: Callable[..., Path], tmp_path: Path, step: int) -> None:
    """Found at the end of an epoch and, within long ones, every 50 steps."""
    changes = ["toy_plugin.nan_from=3"] + (["toy_plugin.samples=120", "data.batch_size=1"] if step == 60 else [])
    with pytest.raises(DivergedError, match="term risk, size"):
        toy_run(*changes)
    split = Maps.open(tmp_path / "run").split(0)
    assert split.status()["status"] == "failed"
    assert "no longer finite" in split.status()["reason"]
    assert split.history() == []
    assert split.checkpoints() == []


def test_evaluation_covers_every_sample_without_gradients() -> None:
    built = engine(metrics=[Fit()])
    loader = Loader(Doubles(7), 3)
    built.model.train()
    found = evaluate_group(Run(RunConfig(), built.plain, torch.device("cpu")), built, loader, "test")
    assert built.model.training
    assert found.rows["sample_id"].tolist() == [f"sample-{i:03d}" for i in range(7)]
    assert set(found.metrics) == {"loss", "loss_risk", "loss_size", "fit"}
    again = evaluate_group(Run(RunConfig(), built.plain, torch.device("cpu")), built, Loader(Doubles(7), 7), "test")
    assert again.metrics == pytest.approx(found.metrics, rel=1e-12)
    assert [len(batch["sample_id"]) for batch in batches(loader, built)] == [3, 3, 1]


def test_batches_are_moved_into_the_memory_format() -> None:
    image, volume = torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 3, 4, 5)
    batch = {"image": image, "label": torch.zeros(2), "sample_id": ["a", "b"], "more": {"image": image}}
    moved = move_batch(batch, torch.device("cpu"), torch.channels_last)
    assert moved["image"].is_contiguous(memory_format=torch.channels_last)
    assert moved["more"]["image"].is_contiguous(memory_format=torch.channels_last)
    assert moved["label"] is batch["label"] and moved["sample_id"] == ["a", "b"]
    whole = move_batch({"volume": volume.repeat(1, 2, 1, 1, 1)}, torch.device("cpu"), torch.channels_last_3d)
    assert whole["volume"].is_contiguous(memory_format=torch.channels_last_3d)
    built = engine(memory_format=torch.channels_last)
    assert built.move(batch)["image"].is_contiguous(memory_format=torch.channels_last)


def test_modes_are_put_back() -> None:
    net = network().eval()
    with evaluation_mode(net):
        assert not net.training
    assert not net.training


def test_empty_shards_keep_their_graph() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    term = as_terms({"a": (x * 2, 5.0)}, 1, torch.device("cpu"), empty=True)["a"]
    term.sum.backward()
    assert x.grad is not None and float(x.grad) == 0.0


def test_hooks_compute_as_the_configuration_says(trainer: Callable[..., Any]) -> None:
    """`run.world` and `run.autocast()` are there in training, evaluation and prediction."""
    seen: dict[str, tuple[list[int], torch.dtype]] = {}

    class Looks:
        def note(self, run: Run, where: str) -> None:
            with run.autocast():
                seen[where] = run.world.gather([run.world.rank]), torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype

        @hookimpl
        def on_step_end(self, run: Run) -> None:
            self.note(run, "train")

        @hookimpl
        def evaluate(self, run: Run) -> None:
            self.note(run, run.evaluation.group if run.evaluation else "evaluate")

        @hookimpl
        def predict(self, run: Run, sample: str) -> str:
            self.note(run, sample)
            return sample

    for amp, dtype in (("bf16", torch.bfloat16), ("no", torch.float32)):
        seen.clear()
        made = trainer(amp, f"computational.amp={amp}", callbacks=[Looks()])
        made.train()
        made.test()
        made.predict("predict")
        assert seen == dict.fromkeys(["train", "evaluate", "validation", "predict"], ([0], dtype))
