"""The evaluation of one group: a plugin's own, or the core's loop over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from medtrain.data.loader import Loader
from medtrain.plugins import Plugins
from medtrain.protocols.loss import as_terms
from medtrain.protocols.metric import Evaluation, RowCollector, compute_all, merge_rows
from medtrain.protocols.model import evaluation_mode
from medtrain.run import Run
from medtrain.training.engine import Engine
from medtrain.training.interruptions import SIGNALS_EVERY, StopSignal
from medtrain.training.totals import Totals


def evaluate(
    run: Run,
    engine: Engine,
    plugins: Plugins,
    loader: Loader,
    group: str,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """A plugin's own evaluation, or the core's loop over the group."""
    run.network = engine.for_evaluation()
    answer = plugins.first_result("evaluate", run=run, loader=batches(loader, engine))
    if answer is None:
        return evaluate_group(run, engine, loader, group, stop=stop)
    result: Evaluation = engine.world.broadcast(answer)
    result.group = group
    return result


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
            totals.add(as_terms(result, len(batch["sample_id"]), world.device, item.empty))
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
