"""One epoch of training and one evaluation: the path of the data, nothing else.

Nothing in here waits for the device unless it must: sums stay on it until the epoch ends or they are asked for.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from medtrain.data import Augmentation, Item, Loader
from medtrain.determinism import StepSeeder
from medtrain.distributed import World
from medtrain.errors import ConfigError, DivergedError
from medtrain.losses import Term, Terms, as_terms
from medtrain.metrics import Evaluation, Metric, RowCollector, compute_all, merge_rows
from medtrain.model import evaluation_mode, move_batch, training_mode
from medtrain.optimizers import Optimizers
from medtrain.run import Run

CHECK_EVERY = 50  # steps between two looks at whether the loss is finite (each look waits for the device)
SAMPLES = "samples"  # the weight of terms that are means over samples, in an accumulation window
SIGNALS_EVERY = 10  # steps between two agreements of several processes on whether a signal arrived


@dataclass
class Totals:
    """Sums and weights of the loss's terms over (a part of) an epoch, on the device, in float64.

    grad_norm: sum of the gradient norms before clipping. norms: how many were finite, where some may not be.
    rates: learning rates of the last step, by group. skipped: steps left out as not finite.
    """

    terms: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    grad_norm: torch.Tensor | None = None
    norms: torch.Tensor | None = None
    steps: int = 0
    rates: list[float] = field(default_factory=list)
    skipped: int = 0

    def add(self, terms: Terms) -> None:
        for name, term in terms.items():
            sums = self._of(name, term.sum.device)
            sums[0].add_(term.sum.detach())
            sums[1].add_(term.weight)

    def add_mean(self, mean: torch.Tensor, samples: int) -> None:
        """A loss that is one scalar, the mean over `samples`."""
        sums = self._of("loss", mean.device)
        sums[0].add_(mean.detach(), alpha=samples)
        sums[1].add_(samples)

    def _of(self, name: str, device: torch.device) -> list[torch.Tensor]:
        if name not in self.terms:
            exact = torch.float32 if device.type == "mps" else torch.float64  # all that Apple's GPUs have
            zero = torch.zeros((), dtype=exact, device=device)
            self.terms[name] = [zero, zero.clone()]
        return self.terms[name]

    def add_all(self, other: Totals) -> None:
        """The sums of a single step."""
        for name, (total, weight) in other.terms.items():
            sums = self._of(name, total.device)
            sums[0].add_(total)
            sums[1].add_(weight)

    def add_norm(self, norm: torch.Tensor, scaled: bool) -> None:
        """The gradient norm of a step. scaled: a gradient scaler leaves out steps whose norm is not finite."""
        if scaled:
            finite = norm.isfinite()
            norm = torch.where(finite, norm, 0.0)
            self.norms = finite.long() if self.norms is None else self.norms.add_(finite)
        if self.grad_norm is None:
            self.grad_norm = norm.clone() if norm.device.type == "mps" else norm.double()
        else:
            self.grad_norm.add_(norm)

    def is_finite(self) -> bool:
        """Whether every sum is; waits for the device."""
        return all(math.isfinite(total.item()) for total, _ in self.terms.values())

    def means(self, world: World) -> dict[str, float]:
        """`loss` and, when there are several, each term; over all processes."""
        sums = [number for pair in self.terms.values() for number in pair]
        if not sums:
            return {"loss": math.nan}
        numbers = world.sum(torch.stack(sums)).tolist()
        values = {
            name: numbers[2 * i] / numbers[2 * i + 1] if numbers[2 * i + 1] else 0.0
            for i, name in enumerate(self.terms)
        }
        means = {"loss": sum(values.values())}
        if len(values) > 1:
            means |= {f"loss_{name}": value for name, value in values.items()}
        steps = self.steps - self.skipped if self.norms is None else int(self.norms)
        if self.grad_norm is not None and steps:
            means["grad_norm"] = float(self.grad_norm) / steps
        return means

    def state_dict(self) -> dict[str, Any]:
        names = ("terms", "grad_norm", "norms", "steps", "rates", "skipped")
        return {name: getattr(self, name) for name in names}

    def shared(self, world: World) -> Totals:
        """The totals of all processes together."""
        terms = {name: [world.sum(number.clone()) for number in pair] for name, pair in self.terms.items()}
        return replace(self, terms=terms)

    @classmethod
    def from_state(cls, state: dict[str, Any], world: World) -> Totals:
        """What `shared` gave: the main process takes all of it, the others go on from zero."""
        keep = 1.0 if world.is_main else 0.0
        terms = {name: [n.to(world.device) * keep for n in pair] for name, pair in state["terms"].items()}
        facts = {name: value for name, value in state.items() if name != "terms"}
        for name in ("grad_norm", "norms"):
            if (value := facts.get(name)) is not None:
                facts[name] = value.to(world.device)
        return cls(terms, **facts)


@dataclass
class Engine:
    """Everything a step needs, assembled once. `model` may be under DDP; `plain` is the same without.

    skip_after: leave out steps that are not finite, up to so many in a row (`skipped`); None: none is looked at.
    """

    model: nn.Module
    plain: nn.Module
    loss: Callable[..., Any]
    optimizer: Any
    schedule: Any
    world: World
    seeder: StepSeeder
    augmentation: Augmentation | None = None
    metrics: list[Metric] = field(default_factory=list)
    amp: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None
    ema: torch.optim.swa_utils.AveragedModel | None = None
    memory_format: torch.memory_format | None = None
    accumulation_steps: int = 1
    clip_grad_value: float | None = None
    clip_grad_norm: float | None = None
    clip_norm_type: float = 2.0
    skip_after: int | None = None
    skipped: int = 0
    on_step_end: list[Callable[[Run], None]] = field(default_factory=list)
    stages: Any = None
    transfer: Any = None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.amp is None:
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, dtype=self.amp)

    def move(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.world.device.type == "cpu" and self.memory_format is None:
            return batch
        moved: dict[str, Any] = move_batch(batch, self.world.device, self.memory_format)
        return moved

    def for_evaluation(self) -> nn.Module:
        """The weights that count: their moving average when there is one."""
        return self.plain if self.ema is None else self.ema.module


class StopSignal(Exception):
    """Raised inside an epoch when a signal asks the run to checkpoint and leave."""


def train_epoch(
    run: Run,
    engine: Engine,
    loader: Loader,
    totals: Totals,
    first_step: int,
    after_step: Callable[[int], bool | None],
    stop: Callable[[], bool],
) -> None:
    """Steps `first_step`.. of the present epoch.

    after_step: called with the number of steps the epoch has done (step checkpoints); True ends the epoch here, on
    every process. stop: whether to leave; processes agree on it. `run.progress["waiting_seconds"]` grows by what was
    spent waiting for data. Raises StopSignal, DivergedError.
    """
    training_mode(engine.model)
    several = engine.world.size > 1
    items = loader.epoch(run.epoch, first_step * engine.accumulation_steps)
    done, progress, clock = first_step, run.progress, time.perf_counter
    progress.setdefault("waiting_seconds", 0.0)
    while True:
        asked = clock()
        window = list(islice(items, engine.accumulation_steps))
        progress["waiting_seconds"] += clock() - asked
        if not window:
            return
        take_step(run, engine, window, totals)
        done += 1
        progress["done"] = done
        for hook in engine.on_step_end:
            hook(run)
        if run.step % CHECK_EVERY == 0:
            check_finite(run, engine.world, totals)
        if after_step(done):
            return
        if several:
            if run.step % SIGNALS_EVERY == 0 and engine.world.any(stop()):
                raise StopSignal
        elif stop():
            raise StopSignal


def take_step(run: Run, engine: Engine, window: list[Item], totals: Totals) -> None:
    """One optimizer step from a window of batches (one batch without accumulation)."""
    if engine.skip_after is None:
        accumulate(run, engine, window, totals)
        step_optimizer(run, engine, totals)
        return
    # Batch statistics see a bad batch in the forward pass already: they are put back as well.
    statistics = [(buffer, buffer.clone()) for buffer in engine.plain.buffers()]
    sums = Totals()
    accumulate(run, engine, window, sums)
    if is_sound(engine, sums):
        engine.skipped = 0
        totals.add_all(sums)
        step_optimizer(run, engine, totals)
        return
    engine.optimizer.zero_grad(set_to_none=True)
    for buffer, before in statistics:
        buffer.copy_(before)
    engine.skipped += 1
    totals.skipped += 1
    finish_step(run, engine, totals)
    if engine.skipped > engine.skip_after:
        raise DivergedError(
            f"{engine.skipped} steps in a row were left out because their loss or gradient is not finite (epoch "
            f"{run.epoch}, up to step {run.step}; optimization.max_skipped = {engine.skip_after}); lower "
            "optimization.learning_rate, set optimization.clip_grad_norm, or look for bad input values"
        )


def accumulate(run: Run, engine: Engine, window: list[Item], totals: Totals) -> None:
    """The gradient of a window of batches, on every process the same."""
    world = engine.world
    several = engine.optimizer if isinstance(engine.optimizer, Optimizers) else None
    items = [prepare(engine, item) for item in window]
    weights = window_weights(engine, items, window) if len(window) > 1 else None
    last = len(window) - 1
    alone = world.size == 1 and last == 0
    if several is not None and world.size > 1:
        share_buffers(engine.plain)
    for number, batch in enumerate(items):
        engine.seeder(run.step * engine.accumulation_steps + number)
        # Gradients travel between processes once, with the window's last backward pass.
        hold = number < last and world.size > 1 and several is None
        with engine.model.no_sync() if hold else contextlib.nullcontext():  # type: ignore[operator]
            with engine.autocast():
                result = engine.loss(engine.model(batch), batch)
            samples = len(batch["sample_id"])
            if several is not None:
                terms = as_terms(result, samples, world.device, window[number].empty)
                totals.add(terms)
                several.backward(combine_by_optimizer(several, terms, weights, world))
                continue
            if alone and isinstance(result, torch.Tensor):
                total = result
                totals.add_mean(result, samples)
            else:
                terms = as_terms(result, samples, world.device, window[number].empty)
                totals.add(terms)
                total = combine(terms, weights, world)
            (engine.scaler.scale(total) if engine.scaler else total).backward()  # type: ignore[no-untyped-call]
    if several is not None and world.size > 1:
        share_gradients(several, world)


def combine_by_optimizer(
    optimizers: Optimizers, terms: Terms, weights: dict[str, torch.Tensor] | None, world: World
) -> dict[str, torch.Tensor]:
    """The total of each optimizer's terms. Their gradients are averaged over processes, as DDP's are."""
    named: dict[str, Terms] = {}
    for term, value in terms.items():
        named.setdefault(optimizers.owner(term), {})[term] = value
    return {name: combine(own, weights, world) for name, own in named.items()}


def share_gradients(optimizers: Optimizers, world: World) -> None:
    """Average the gradients over processes: what DDP does, for gradients that were not taken through it."""
    for parameters in optimizers.parameters.values():
        for parameter in parameters:
            if parameter.grad is not None:
                world.sum(parameter.grad).div_(world.size)


def share_buffers(model: nn.Module) -> None:
    """The buffers of the main process on every process, as DDP keeps them."""
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def is_sound(engine: Engine, sums: Totals) -> bool:
    """Whether loss and gradient of a step are finite on every process; waits for the device.

    A gradient that overflowed in half precision is the gradient scaler's business.
    """
    flags = [total.isfinite() for total, _ in sums.terms.values()]
    if engine.scaler is None:
        gradients = [p.grad for p in engine.plain.parameters() if p.grad is not None]
        flags.append(nn.utils.get_total_norm(gradients).isfinite())
    return not engine.world.any(not bool(torch.stack(flags).all()))


def prepare(engine: Engine, item: Item) -> dict[str, Any]:
    """The batch on the device, augmented."""
    batch = engine.move(item.batch)
    if item.draws is not None and engine.augmentation is not None:
        batch = engine.augmentation(batch, engine.move(item.draws))
    return batch


def window_weights(engine: Engine, items: list[dict[str, Any]], window: list[Item]) -> dict[str, torch.Tensor] | None:
    """What each term of an accumulation window is divided by, over all processes; None: the samples of the window."""
    weigh = getattr(engine.loss, "weights", None)
    sums: dict[str, torch.Tensor] = {}
    for batch, item in zip(items, window, strict=True):
        weights = weigh(batch) if weigh else {SAMPLES: torch.tensor(float(len(batch["sample_id"])))}
        for name, weight in weights.items():
            weight = weight.to(engine.world.device) * (0.0 if item.empty else 1.0)
            sums[name] = sums[name] + weight if name in sums else weight
    engine.world.sum(stacked := torch.stack(list(sums.values())))
    return dict(zip(sums, stacked.unbind(), strict=True))


def combine(terms: Terms, weights: dict[str, torch.Tensor] | None, world: World) -> torch.Tensor:
    """The scalar whose gradient, averaged over processes, is that of sum_k sum(S_k) / sum(W_k)."""
    if weights is None:
        divisors = [term.weight for term in terms.values()]
        if world.size > 1:
            divisors = list(world.sum(torch.stack(divisors)).unbind())
        pairs = [(term.sum, divisor) for term, divisor in zip(terms.values(), divisors, strict=True)]
    else:
        pairs = [(term.sum, _window_weight(name, term, weights)) for name, term in terms.items()]
    value = pairs[0][0] / _safe(pairs[0][1])
    for total, weight in pairs[1:]:
        value = value + total / _safe(weight)
    return value if world.size == 1 else value * world.size


def _window_weight(name: str, term: Term, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    if name in weights:
        return weights[name]
    if SAMPLES in weights and term.is_mean:
        return weights[SAMPLES]
    raise ConfigError(
        f"optimization.accumulation_steps: the loss returns its term {name!r} with a weight of its own, so it needs a "
        "method weights(batch) that gives this weight before the forward pass (see medtrain.losses)"
    )


def _safe(weight: torch.Tensor) -> torch.Tensor:
    # A term without weight has the sum 0 as well, and 0 / 1 keeps its graph.
    return torch.where(weight == 0, 1.0, weight)


def step_optimizer(run: Run, engine: Engine, totals: Totals) -> None:
    """Unscale, clip, step, schedule; in this order."""
    optimizer, scaler = engine.optimizer, engine.scaler
    if engine.clip_grad_norm is not None or engine.clip_grad_value is not None:
        if scaler:
            scaler.unscale_(optimizer)
        clip(engine, totals)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if engine.ema is not None:
        engine.ema.update_parameters(engine.plain)
    finish_step(run, engine, totals)


def finish_step(run: Run, engine: Engine, totals: Totals) -> None:
    """Count the step, and move the learning rate on."""
    totals.rates = [group["lr"] for group in engine.optimizer.param_groups]
    engine.schedule.after_step()
    run.step += 1
    totals.steps += 1


def clip(engine: Engine, totals: Totals) -> None:
    """Bound the entries of the gradients, then their norm; of several optimizers each one's own."""
    several = isinstance(engine.optimizer, Optimizers)
    parts = list(engine.optimizer.parameters.values()) if several else [list(engine.plain.parameters())]
    if engine.clip_grad_value is not None:
        for part in parts:
            nn.utils.clip_grad_value_(part, engine.clip_grad_value)
    if engine.clip_grad_norm is not None:
        kind = engine.clip_norm_type
        norms = [nn.utils.clip_grad_norm_(part, engine.clip_grad_norm, norm_type=kind) for part in parts]
        norm = torch.linalg.vector_norm(torch.stack(norms), kind) if several else norms[0]
        totals.add_norm(norm, engine.scaler is not None)


def check_finite(run: Run, world: World, totals: Totals) -> None:
    """Raise DivergedError, on every process, when the loss is not finite on one."""
    if world.any(not totals.is_finite()):
        bad = [name for name, (total, _) in totals.terms.items() if not math.isfinite(total.item())]
        raise DivergedError(
            f"the training loss is no longer finite (epoch {run.epoch}, within the {CHECK_EVERY} steps before step "
            f"{run.step}{', term ' + ', '.join(bad) if bad else ''}); lower optimization.learning_rate, set "
            "optimization.clip_grad_norm, or look for bad input values"
        )


def evaluate_group(
    run: Run,
    engine: Engine,
    loader: Loader,
    group: str,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Loss and metrics of one group, the same on every process. Raises StopSignal."""
    model, world = engine.for_evaluation(), engine.world
    totals, collector = Totals(), RowCollector(engine.metrics)
    with evaluation_mode(model), torch.no_grad():
        for number, item in enumerate(loader.epoch()):
            engine.seeder(-1 - number)
            batch = engine.move(item.batch)
            with engine.autocast():
                outputs = model(batch)
                result = engine.loss(outputs, batch)
            samples = len(batch["sample_id"])
            if isinstance(result, torch.Tensor) and not item.empty:
                totals.add_mean(result, samples)  # exact: as a term it would be multiplied in single precision
            else:
                totals.add(as_terms(result, samples, world.device, item.empty))
            if not item.empty:
                collector.update(outputs, batch, item.positions)
            if (world.size == 1 or number % SIGNALS_EVERY == 0) and world.any(stop()):
                raise StopSignal
    rows = merge_rows(world.gather(collector.finish()))
    means = totals.means(world)
    values, reasons = world.broadcast(compute_all(engine.metrics, rows))
    return Evaluation(group, {**means, **values}, rows, reasons)


def batches(loader: Loader, engine: Engine) -> Iterator[dict[str, Any]]:
    """This process's evaluation batches on the device, for plugins that evaluate themselves."""
    for item in loader.epoch():
        if not item.empty:
            yield engine.move(item.batch)
