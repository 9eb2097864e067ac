"""The frozen public contract. A change here is a change for every plugin and every script: extend, do not break."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import click
import medtrain
import pytest
from medtrain import errors, hookimpl, hookspecs
from medtrain.config import RunConfig
from medtrain.errors import PluginError
from medtrain.plugins import Plugins, check
from medtrain.protocols.loss import as_terms
from medtrain.protocols.metric import BatchMetric, Metric
from medtrain.protocols.schedule import Plan, Schedule
from medtrain.rundir import checkpoint
from medtrain.rundir import directory as maps
from medtrain_cli import catalog
from medtrain_cli.main import COMMANDS, cli
from medtrain_cli.plugins import order_of_asking

HOOKS = {
    hookspecs.Building: {
        "plugin_options": [],
        "build_data": ["config"],
        "split_data": ["config", "data"],
        "build_model": ["config"],
        "prepare_model": ["config", "model", "read_weights"],
        "build_loss": ["config", "model"],
        "build_optimizer": ["config", "model"],
        "build_scheduler": ["config", "optimizer", "plan"],
        "build_metrics": ["config", "data"],
        "build_augmentation": ["config"],
    },
    hookspecs.Doing: {
        "evaluate": ["run", "loader"],
        "predict": ["run", "sample"],
        "import_weights": ["config", "paths"],
        "export": ["run", "format", "path", "check"],
        "report_sections": ["run"],
        "write_report": ["run", "folder", "sections"],
    },
    hookspecs.Lifecycle: {
        "on_run_start": ["run"],
        "on_epoch_start": ["run"],
        "on_step_end": ["run"],
        "on_evaluate_end": ["run"],
        "on_epoch_end": ["run"],
        "on_checkpoint": ["run"],
        "on_run_end": ["run"],
        "on_exception": ["run"],
    },
}

PUBLIC = [
    "COLOURS",
    "NONE",
    "Augmentation",
    "BatchMetric",
    "ComparedRuns",
    "ComputationalConfig",
    "Data",
    "EarlyStoppingCallback",
    "Evaluation",
    "ImportedCheckpoint",
    "ImportedSplit",
    "KFold",
    "LRSchedulerCallback",
    "Metric",
    "ModelCheckpointCallback",
    "OptimizationConfig",
    "Plan",
    "Run",
    "RunConfig",
    "Schedule",
    "Section",
    "SingleSplit",
    "Split",
    "SupervisedModel",
    "TensorModel",
    "TrainResult",
    "Trainer",
    "TrainingCheckpointCallback",
    "Undefined",
    "__version__",
    "build_model",
    "compare_runs",
    "counts_text",
    "differences_table",
    "hookimpl",
    "make_folder",
    "make_kfold",
    "make_split",
    "parameter_groups",
    "scores_table",
    "seed_everything",
    "seed_everything_context",
    "seed_model",
    "write_comparison",
    "write_page",
    "write_run",
]

KEYS: dict[str, Any] = {
    "run.plugins": [],
    "run.preset": "",
    "run.name": "",
    "run.seed": 0,
    "run.concurrent_splits": 1,
    "data.table": None,
    "data.images": None,
    "data.batch_size": 8,
    "data.evaluation_batch_size": None,
    "data.num_workers": 0,
    "data.evaluation_num_workers": None,
    "data.prefetch_factor": None,
    "data.persistent_workers": True,
    "data.pin_memory": None,
    "data.drop_last": False,
    "data.sampling": "shuffle",
    "data.max_batches": None,
    "data.validation_fraction": 0.2,
    "data.test_fraction": 0.1,
    "data.num_folds": 0,
    "data.splits": None,
    "optimization.num_epochs": 10,
    "optimization.max_steps": None,
    "optimization.max_seconds": None,
    "optimization.optimizer": "AdamW",
    "optimization.options": {},
    "optimization.learning_rate": 1e-3,
    "optimization.weight_decay": 1e-2,
    "optimization.decay_norm_and_bias": True,
    "optimization.groups": [],
    "optimization.freeze": [],
    "optimization.accumulation_steps": 1,
    "optimization.evaluation_interval": 1,
    "optimization.evaluation_every_n_steps": 0,
    "optimization.clip_grad_value": None,
    "optimization.clip_grad_norm": None,
    "optimization.clip_norm_type": 2.0,
    "optimization.nonfinite": "stop",
    "optimization.max_skipped": 10,
    "optimization.ema_decay": None,
    "scheduler.name": "none",
    "scheduler.options": {},
    "scheduler.interval": "auto",
    "scheduler.warmup_steps": 0,
    "scheduler.warmup_epochs": 0.0,
    "scheduler.factor": 0.5,
    "scheduler.patience": 5,
    "scheduler.step_size": 10,
    "scheduler.milestones": [],
    "scheduler.power": 1.0,
    "scheduler.min_lr": 0.0,
    "validation.monitor": "",
    "checkpoint.every_n_epochs": 0,
    "checkpoint.every_n_steps": 0,
    "checkpoint.keep_last_n": None,
    "checkpoint.epochs": [],
    "checkpoint.last_every_n_epochs": 1,
    "checkpoint.last_every_n_steps": 0,
    "checkpoint.save_last": True,
    "checkpoint.best": True,
    "checkpoint.metrics": [],
    "checkpoint.top_k": 1,
    "early_stopping.patience": None,
    "early_stopping.min_delta": 0.0,
    "early_stopping.monitor": "",
    "early_stopping.mode": "auto",
    "early_stopping.when": "all",
    "early_stopping.check_finite": True,
    "early_stopping.upper_bound": None,
    "early_stopping.lower_bound": None,
    "transfer.checkpoint": None,
    "transfer.include": ["*"],
    "transfer.exclude": [],
    "transfer.lr_scale": 1.0,
    "transfer.freeze": [],
    "transfer.freeze_epochs": 0,
    "computational.device": "auto",
    "computational.amp": "auto",
    "computational.memory_format": "contiguous",
    "computational.deterministic": False,
    "computational.benchmark": False,
    "computational.allow_tf32": None,
    "computational.compile": False,
    "computational.find_unused_parameters": False,
}

OPTIONS = {
    "run": "plugin preset config set data images out name epochs seed nproc split quiet json dry-run",
    "resume": "split checkpoint set nproc quiet json",
    "eval": "group data images split checkpoint out set json",
    "predict": "split checkpoint out set json",
    "plugins.list": "json probe",
    "plugins.info": "json",
    "plugins.explain": "json",
    "plugins.check": "",
    "plugins.new": "kind out",
    "config.show": "plugin preset config set data images name epochs seed",
    "config.check": "plugin preset config set data images name epochs seed",
    "config.schema": "plugin",
    "data.split": "out test folds repeats leave-one-out stratify group longitudinal seed json",
    "runs.list": "json",
    "runs.show": "json",
    "runs.pause": "split",
    "runs.continue": "split",
    "runs.compare": "group split out replicates seed json",
    "runs.verify": "json",
    "weights.import": "out set json",
    "weights.export": "out checkpoint format json",
    "weights.show": "json",
    "export": "format out checkpoint check set json",
    "doctor": "json",
}


def test_hooks_and_their_arguments() -> None:
    for group, hooks in HOOKS.items():
        found = {
            name: list(inspect.signature(function).parameters)[1:]
            for name, function in vars(group).items()
            if not name.startswith("_")
        }
        assert found == hooks
    assert tuple(HOOKS[hookspecs.Building]) == hookspecs.BUILDING
    assert tuple(HOOKS[hookspecs.Doing]) == hookspecs.DOING
    assert tuple(HOOKS[hookspecs.Lifecycle]) == hookspecs.LIFECYCLE
    assert hookspecs.ALL == hookspecs.BUILDING + hookspecs.DOING + hookspecs.LIFECYCLE


def test_every_hook_is_explained() -> None:
    for group in HOOKS:
        assert all(function.__doc__ for name, function in vars(group).items() if not name.startswith("_"))


def test_public_names() -> None:
    assert medtrain.__all__ == PUBLIC
    assert dir(medtrain) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(medtrain, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Trainr'"):
        _ = medtrain.Trainr


def test_keys_and_defaults() -> None:
    config = RunConfig()
    assert {key.split(".")[0] for key in KEYS} | {"stages", "plugins"} == set(RunConfig.model_fields)
    assert (config.stages, config.plugins) == ([], {})
    for key, default in KEYS.items():
        section, name = key.split(".")
        assert getattr(getattr(config, section), name) == default, key


def test_run_directory_names() -> None:
    assert (maps.INDEX, maps.CONFIG, maps.ENVIRONMENT) == ("maps.json", "config.toml", "environment.json")
    assert maps.SCHEMA == checkpoint.SCHEMA == 1
    names = (checkpoint.MODEL, checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST)
    assert names == ("model.safetensors", "state.safetensors", "state.json", "checkpoint.json")


def test_a_run_writes_these_files(toy_run: Any) -> None:
    run = toy_run("checkpoint.every_n_epochs=1", "checkpoint.every_n_steps=4")
    split = run / "split-0"
    for name in ("maps.json", "config.toml", "environment.json"):
        assert (run / name).is_file()
    for name in ("split.json", "status.json", "history.jsonl", "timing.jsonl", "log.txt"):
        assert (split / name).is_file()
    folders = {path.name for path in split.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert folders == {"last", "best-fit", "epoch-0001", "epoch-0002", "step-00000004"}
    for folder in folders:
        files = {path.name for path in (split / folder).iterdir()}
        assert files == {
            "model.safetensors",
            "state.safetensors",
            "state.json",
            "checkpoint.json",
            "config.toml",
            "split.json",
        }


def test_exit_codes() -> None:
    codes = {
        errors.MedtrainError: 1,
        errors.UsageError: 2,
        errors.ConfigError: 2,
        errors.PluginError: 2,
        errors.HookError: 1,
        errors.DataError: 3,
        errors.CheckpointError: 3,
        errors.DivergedError: 4,
        errors.Preempted: 75,
        errors.Interrupted: 130,
    }
    for kind, code in codes.items():
        assert kind("x").exit_code == code
        assert isinstance(kind("x"), errors.MedtrainError)


def test_command_tree() -> None:
    assert set(OPTIONS) <= {*COMMANDS, *catalog.commands()}
    for dotted, wanted in OPTIONS.items():
        context = click.Context(cli)
        command: Any = cli
        for part in dotted.split("."):
            command = command.get_command(context, part)
        options = {
            option.removeprefix("--") for parameter in command.params for option in parameter.opts if "--" in option
        }
        assert options >= set(wanted.split()), dotted


def test_a_loss_states_sums_and_weights() -> None:
    import torch

    cpu = torch.device("cpu")
    scalar = as_terms(torch.tensor(2.0), 4, cpu)
    assert (float(scalar["loss"].sum), float(scalar["loss"].weight), scalar["loss"].is_mean) == (8.0, 4.0, True)
    pair = as_terms((torch.tensor(6.0), 3), 4, cpu)
    assert (float(pair["loss"].sum), float(pair["loss"].weight), pair["loss"].is_mean) == (6.0, 3.0, False)
    named = as_terms({"a": (torch.tensor(1.0), torch.tensor(2.0)), "b": torch.tensor(0.5)}, 2, cpu)
    assert {name: (float(term.sum), float(term.weight)) for name, term in named.items()} == {"a": (1, 2), "b": (1, 2)}
    nothing = as_terms({"a": (torch.tensor(1.0), 2.0)}, 2, cpu, empty=True)
    assert (float(nothing["a"].sum), float(nothing["a"].weight)) == (0.0, 0.0)


def test_metric_protocol() -> None:
    assert isinstance(BatchMetric("mean", lambda p, t: p.mean(), "logits", "label"), Metric)
    assert not isinstance(SimpleNamespace(names=["x"], mode="max"), Metric)


def test_schedule_protocol() -> None:
    fields = ["num_epochs", "steps_per_epoch", "monitor", "mode", "max_steps"]
    assert list(inspect.signature(Plan).parameters) == fields
    assert Plan(3, 7, "loss", "min").total_steps == 21
    assert Plan(3, 7, "loss", "min", max_steps=20).total_steps == 20
    for method in ("after_step", "after_epoch", "state_dict", "load_state_dict"):
        assert callable(getattr(Schedule, method))


class Answers:
    """A plugin whose building hooks answer with a fixed value."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    @hookimpl
    def build_model(self) -> Any:
        return self.answer


def _plugins(*answers: Any) -> Plugins:
    return Plugins([check(f"p{number}", Answers(answer)) for number, answer in enumerate(answers)])


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        (("first", "last"), "last"),
        (("first", None), "first"),
        (("first", medtrain.NONE), medtrain.NONE),
        ((medtrain.NONE, "last"), "last"),
        ((None, None), None),
    ],
)
def test_the_last_plugin_answers_first_and_the_first_answer_wins(answers: tuple[Any, ...], wanted: Any) -> None:
    assert _plugins(*answers).first_result("build_model", config=None) is wanted


def test_none_says_its_name() -> None:
    assert repr(medtrain.NONE) == "medtrain.NONE"


class Speaks:
    """A plugin that notes when it is called; its hook takes no argument."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.said = name, said

    @hookimpl
    def on_epoch_end(self) -> None:
        self.said.append(self.name)

    @hookimpl
    def report_sections(self, run: Any) -> list[str]:
        return [self.name]


def test_lifecycle_and_reports_follow_the_command_line() -> None:
    said: list[str] = []
    plugins = Plugins([check(name, Speaks(name, said)) for name in ("a", "b", "c")])
    for hook in plugins.lifecycle("on_epoch_end"):
        hook(None)
    assert said == ["a", "b", "c"]
    assert plugins.all_results("report_sections", run=None) == [["a"], ["b"], ["c"]]


def test_explain_gives_the_order_of_asking() -> None:
    rows = {row["hook"]: row for row in order_of_asking(_plugins("x", "y"))}
    assert rows["build_model"] == {
        "hook": "build_model",
        "rule": "first answer wins",
        "plugins": ["p1", "p0"],
        "default": "nothing: a plugin must answer",
    }
    assert rows["build_optimizer"]["default"].startswith("AdamW")
    assert set(rows) == set(hookspecs.ALL)


@pytest.mark.parametrize("setting", ["tryfirst", "trylast", "hookwrapper", "wrapper"])
def test_plugins_may_not_jump_the_queue(setting: str) -> None:
    class Jumper:
        @hookimpl(**{setting: True})
        def on_epoch_end(self) -> Any:
            yield

    with pytest.raises(PluginError, match="on_epoch_end: tryfirst, trylast and wrappers are refused"):
        check("jumper", Jumper())
