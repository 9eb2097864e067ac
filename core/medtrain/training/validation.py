"""The validation group in training: when it is evaluated, and what its values decide."""

from __future__ import annotations

import time
from typing import Any

from medtrain.protocols.metric import Evaluation
from medtrain.protocols.model import training_mode
from medtrain.protocols.ranking import CheckpointId
from medtrain.run import Run
from medtrain.rundir.retention import CheckpointRetention
from medtrain.training.engine import Engine
from medtrain.training.epoch import Epoch
from medtrain.training.evaluation import evaluate
from medtrain.training.hooks import Hooks
from medtrain.training.interruptions import Interruptions
from medtrain.training.loaders import StageData
from medtrain.training.monitor import value_of


class Validation:
    """Evaluates the validation group of the data under way."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        hooks: Hooks,
        data: StageData,
        epoch: Epoch,
        retention: CheckpointRetention,
        interruptions: Interruptions,
    ) -> None:
        self.run, self.engine, self.hooks, self.data, self.epoch = run, engine, hooks, data, epoch
        self.retention, self.interruptions = retention, interruptions
        self.interval = run.config.optimization.evaluation_interval
        self.every_n_steps = run.config.optimization.evaluation_every_n_steps

    def is_due_after_epoch(self) -> bool:
        """Whether the epoch under way ends with an evaluation."""
        run, interval, every = self.run, self.interval, self.every_n_steps
        if self.data.validation is None:
            return False
        if interval and ((run.epoch + 1) % interval == 0 or run.epoch + 1 == run.num_epochs):
            return True
        return bool(every and run.step % every == 0)

    def is_due_after_step(self) -> bool:
        """Whether one is due now, and not left to the end of the epoch."""
        every, run = self.every_n_steps, self.run
        return bool(every and run.step % every == 0 and self.epoch.done < run.steps_per_epoch)

    def is_done(self) -> bool:
        """Whether the model as it stands was evaluated within the epoch."""
        evaluations = self.epoch.evaluations
        return bool(evaluations) and evaluations[-1]["step"] == self.run.step

    def evaluate_within_epoch(self) -> bool:
        """Evaluate for the epoch's record; True when this model is among the best so far."""
        if self.data.validation is None:
            return False
        started, record = time.perf_counter(), {"step": self.run.step}
        is_best = self.update_best(self.evaluate(record), self.run.epoch)
        self.epoch.evaluations.append(record)
        training_mode(self.engine.model)
        self.run.progress["stage"] = "training"
        self.run.progress["evaluation_seconds"] += time.perf_counter() - started
        return is_best

    def evaluate(self, record: dict[str, Any]) -> Evaluation:
        """Evaluate the model as it stands, and add its values to the record."""
        run = self.run
        assert self.data.validation is not None
        run.progress["stage"] = "validation"
        run.evaluation = evaluate(
            run, self.engine, self.hooks.plugins, self.data.validation, "validation", self.interruptions.signalled
        )
        record |= {f"validation/{name}": value for name, value in run.evaluation.metrics.items()}
        if reasons := run.evaluation.reasons:
            record["undefined"] = {f"validation/{name}": reason for name, reason in reasons.items()}
        self.hooks.call("on_evaluate_end")
        return run.evaluation

    def update_best(self, evaluation: Evaluation, epochs: int) -> bool:
        """Whether this model is among the best so far. epochs: how many are done in its checkpoint."""
        values = {name: value_of(evaluation, name) for name in self.retention.rankings}
        return self.retention.update_best(values, CheckpointId(epochs, self.run.step), self.run.epoch)

    def followed_value(self, evaluation: Evaluation | None) -> float | None:
        """The value that the learning-rate schedule follows; None in an epoch without evaluation."""
        name = getattr(self.engine.schedule, "metric", "") or self.run.monitor
        return None if evaluation is None else value_of(evaluation, name)
