"""What a checkpoint holds of a training, and how a training takes it up again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medtrain.errors import CheckpointError
from medtrain.protocols.model import load_state, unwrap
from medtrain.rundir.checkpoint import Checkpoint
from medtrain.training.totals import Totals

if TYPE_CHECKING:
    from medtrain.training.fit import Fit


def take(fit: Fit, totals: Totals | None) -> Checkpoint:
    """The training as it stands. totals: those of the epoch under way, of all processes together."""
    engine, run = fit.engine, fit.run
    model = unwrap(engine.plain).state_dict()
    states = [(name, plugin.state_dict()) for name, plugin in fit.plugins.stateful.items()]
    state: dict[str, Any] = {
        "optimizer": engine.optimizer.state_dict(),
        "schedule": engine.schedule.state_dict(),
        "scaler": engine.scaler.state_dict() if engine.scaler else None,
        "totals": None if totals is None else totals.state_dict(),
        "best": fit.keeper.state_dict(),
        "evaluations": fit.evaluations,
        "skipped": engine.skipped,
        "frozen": engine.transfer.frozen,
        "plugins": {name: state for name, state in states if state is not None},
    }
    if engine.ema is not None:
        state["ema"] = {"training_model": model, "n_averaged": engine.ema.n_averaged}
        model = unwrap(engine.ema.module).state_dict()
    facts = {
        "step": run.step,
        "epoch": run.epoch,
        "steps_into_epoch": fit.first_step,
        "global_batch": fit.samples_per_step,
        "membership": fit.digest,
        "finished": fit.finished,
        "seconds": round(fit.budget.seconds, 3),
        "stop_requested": "" if fit.finished else run.stop_requested,
    }
    texts = {
        "config.toml": fit.config.to_toml(),
        "split.json": (fit.folder.path / "split.json").read_text(encoding="utf-8"),
    }
    return Checkpoint(model, state, facts, texts)


def restore(fit: Fit, saved: Checkpoint) -> None:
    """Take up the state of a checkpoint; what was recorded after it is forgotten."""
    run, engine, facts, state = fit.run, fit.engine, saved.facts, saved.state
    if source := facts.get("imported"):
        raise CheckpointError(
            f"{source} trained these weights, and how it would have gone on is not known here; start a run from them "
            f"with transfer.checkpoint and the folder of the checkpoint in {fit.folder.path}"
        )
    if facts["membership"] != fit.digest:
        raise CheckpointError(
            "the data are not those of the checkpoint: the groups have other members now; "
            f"{fit.folder.path / 'split.json'} lists the ones it was trained on"
        )
    run.step, run.epoch = facts["step"], facts["epoch"]
    fit.first_step = facts["steps_into_epoch"]
    fit.enter_stage()
    if facts["steps_into_epoch"] and facts["global_batch"] != fit.samples_per_step:
        raise CheckpointError(
            f"the checkpoint lies in the middle of an epoch of {facts['global_batch']} samples per step, this run has "
            f"{fit.samples_per_step}: resume with the same number of processes and batch size, or from the end of an "
            "epoch"
        )
    weights = saved.model
    if engine.ema is not None:
        load_state(unwrap(engine.ema.module), saved.model, "checkpoint")
        engine.ema.n_averaged.copy_(state["ema"]["n_averaged"])
        weights = state["ema"]["training_model"]
    load_state(unwrap(engine.plain), weights, "checkpoint")
    if engine.transfer.frozen and not state["frozen"]:
        engine.transfer.unfreeze(engine)
    engine.optimizer.load_state_dict(state["optimizer"])
    engine.schedule.load_state_dict(state["schedule"])
    if engine.scaler:
        engine.scaler.load_state_dict(state["scaler"])
    for name, plugin in fit.plugins.stateful.items():
        if name in state["plugins"]:
            plugin.load_state_dict(state["plugins"][name])
    fit.keeper.load_state_dict(state["best"])
    fit.evaluations, engine.skipped = state["evaluations"], state["skipped"]
    fit.budget.go_on_from(facts["seconds"])
    run.stop_requested = facts["stop_requested"]
    # Early stopping ended the run for good; running out of epochs did not: more may have been asked for.
    fit.finished = facts["finished"]
    if state["totals"] is not None:
        fit.totals = Totals.from_state(state["totals"], fit.world)
    if fit.world.is_main:
        _forget_later(fit)
    fit.world.barrier()


def _forget_later(fit: Fit) -> None:
    run, keeper = fit.run, fit.keeper
    fit.folder.cut_history(run.epoch)
    keeper.forget_later(run.step)
    if run.epoch and not fit.first_step:
        keeper.give_names(run.step, run.epoch)
    keeper.arrange()
