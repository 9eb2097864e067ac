"""The steps of an epoch: the path of the data, nothing else.

Nothing in here waits for the device unless it must: sums stay on it until the epoch ends or they are asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from medtrain.data.loader import Item, Loader
from medtrain.errors import ConfigError, DivergedError
from medtrain.protocols.loss import Term, Terms, as_terms
from medtrain.protocols.model import training_mode
from medtrain.run import Run
from medtrain.runtime.distributed import World
from medtrain.training.engine import Engine
from medtrain.training.optimizers import Optimizers
from medtrain.training.totals import Totals

CHECK_EVERY = 50  # steps between two looks at whether the loss is finite (each look waits for the device)
SAMPLES = "samples"  # the weight of terms that are means over samples, in an accumulation window


def train_steps(run: Run, engine: Engine, loader: Loader, totals: Totals, first_step: int = 0) -> Iterator[int]:
    """Take the optimizer steps `first_step`.. of the present epoch; yields after each how many the epoch has done.

    `run.progress["waiting_seconds"]` grows by what was spent waiting for data. Raises DivergedError.
    """
    training_mode(engine.model)
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
        yield done


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
    apart = engine.optimizer if world.size > 1 and isinstance(engine.optimizer, Optimizers) else None
    batches = [prepare(engine, item) for item in window]
    weights = window_weights(engine, batches, window) if len(window) > 1 else None
    if apart is not None:
        share_buffers(engine.plain)
    for number, batch in enumerate(batches):
        engine.seeder(run.step * engine.accumulation_steps + number)
        if number < len(window) - 1 and world.size > 1 and apart is None:
            # Gradients travel between processes once, with the window's last backward pass.
            with engine.model.no_sync():  # type: ignore[operator]
                add_gradient(engine, batch, window[number].empty, weights, totals)
        else:
            add_gradient(engine, batch, window[number].empty, weights, totals)
    if apart is not None:
        share_gradients(apart, world)


def add_gradient(
    engine: Engine, batch: dict[str, Any], empty: bool, weights: dict[str, torch.Tensor] | None, totals: Totals
) -> None:
    """Forward pass, loss and backward pass of one batch. weights: of its accumulation window, if it is part of one."""
    if engine.amp is None:
        result = engine.loss(engine.model(batch), batch)
    else:
        with engine.autocast():
            result = engine.loss(engine.model(batch), batch)
    world, optimizer, samples = engine.world, engine.optimizer, len(batch["sample_id"])
    if isinstance(optimizer, Optimizers):
        terms = as_terms(result, samples, world.device, empty)
        totals.add(terms)
        optimizer.backward(combine_by_optimizer(optimizer, terms, weights, world))
        return
    if world.size == 1 and weights is None and isinstance(result, torch.Tensor):
        total = result
        totals.add_mean(result, samples)
    else:
        terms = as_terms(result, samples, world.device, empty)
        totals.add(terms)
        total = combine(terms, weights, world)
    (engine.scaler.scale(total) if engine.scaler else total).backward()  # type: ignore[no-untyped-call]


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
        "method weights(batch) that gives this weight before the forward pass (see medtrain.protocols.loss)"
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
