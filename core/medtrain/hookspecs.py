"""Every hook of medtrain on one page: who calls it, when, with what, and what to return.

A plugin implements the hooks it wants with `@medtrain.hookimpl` and names itself in the entry-point
group `medtrain`. An implementation may take fewer arguments than the hook offers.

Building and doing hooks: the last plugin named on the command line is asked first, the default plugins last; the
first answer that is not None wins. Return `medtrain.NONE` to say "deliberately none". Lifecycle hooks: every
implementation runs, in command-line order, those of the default plugins last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import torch
    from pydantic import BaseModel

    from medtrain.config.sections import RunConfig
    from medtrain.data.split import Split
    from medtrain.protocols.dataset import Data
    from medtrain.protocols.metric import Metric
    from medtrain.protocols.report import Section
    from medtrain.protocols.schedule import Plan
    from medtrain.protocols.weights import Check, Weights
    from medtrain.run import Run

hookspec = pluggy.HookspecMarker("medtrain")
hookimpl = pluggy.HookimplMarker("medtrain")


class _None:
    """The answer "deliberately none": unlike None it stops the search and the core's default."""

    def __repr__(self) -> str:
        return "medtrain.NONE"


NONE = _None()


class Building:
    """Asked once while a run is assembled."""

    @hookspec
    def plugin_options(self) -> type[BaseModel]:  # type: ignore[empty-body]
        """The pydantic model of `[plugins.<name>]`; every plugin answers for itself."""

    @hookspec(firstresult=True)
    def build_data(self, config: RunConfig) -> Data | None:
        """Datasets by group, or one dataset for the core to split by participant. No default."""

    @hookspec(firstresult=True)
    def split_data(self, config: RunConfig, data: Data | None) -> Split | None:
        """Split number `config.split` of the data; `Split.count` is how many splits there are.

        data: what `build_data` answered; None when only the number of splits is asked, and the answer needs no groups.
        """

    @hookspec(firstresult=True)
    def build_model(self, config: RunConfig) -> torch.nn.Module | None:
        """`model(batch) -> dict` of outputs, freshly initialised or with its pretrained parts. No default."""

    @hookspec
    def prepare_model(self, config: RunConfig, model: torch.nn.Module, read_weights: Callable[[Path], Weights]) -> None:
        """Load weights into a model in training, or freeze parts of it; all run, the default plugins first.

        model: the network without wrappers, on the device. read_weights: reads a file of any origin that the run's
        plugins know. Where `config.fresh` is true the weights follow from a checkpoint: load none. Parameters that are
        frozen here (`requires_grad_(False)`) keep their place in the optimizer and may train again at the start of any
        epoch.
        """

    @hookspec(firstresult=True)
    def build_loss(self, config: RunConfig, model: torch.nn.Module) -> Callable[..., Any] | None:
        """`loss(outputs, batch)` -> scalar, (sum, weight), or a dict of either (see `medtrain.protocols.loss`)."""

    @hookspec(firstresult=True)
    def build_optimizer(self, config: RunConfig, model: torch.nn.Module) -> Any | None:
        """An optimizer, or a dict name -> optimizer, each driven by the loss's terms of its name (GANs).

        The default plugin builds `optimization.optimizer` over the trainable parameters, in the groups of
        `optimization.groups`.
        """

    @hookspec(firstresult=True)
    def build_scheduler(self, config: RunConfig, optimizer: torch.optim.Optimizer, plan: Plan) -> Any | None:
        """A `medtrain.Schedule`, or a torch scheduler (stepped once per epoch). The default plugin: `[scheduler]`.

        With several optimizers, `optimizer["name"]` is each of them, and a dict name -> schedule may be returned.
        """

    @hookspec(firstresult=True)
    def build_metrics(self, config: RunConfig, data: Data) -> list[Metric] | None:
        """Metrics; `data.train` is there for those that need it (Uno's C: its censoring). Default: none."""

    @hookspec(firstresult=True)
    def build_augmentation(self, config: RunConfig) -> Any | None:
        """A `medtrain.data.Augmentation`: drawn per sample, applied on the device. Default: none."""


class Doing:
    """Asked when a run evaluates, predicts or reports, or when weights are read or exported."""

    @hookspec(firstresult=True)
    def evaluate(self, run: Run, loader: Iterable[dict[str, Any]]) -> Any | None:
        """A `medtrain.Evaluation` for tasks whose result is not per batch. Default: loop over metrics."""

    @hookspec(firstresult=True)
    def predict(self, run: Run, sample: Any) -> Any | None:
        """A pandas table of predictions for `sample`: what the user named on `medtrain predict`. No default."""

    @hookspec(firstresult=True)
    def import_weights(self, config: RunConfig, paths: list[Path]) -> Weights | None:
        """`medtrain.weights.Weights` from files of other projects. Default: safetensors, a plain state dict."""

    @hookspec(firstresult=True)
    def export(self, run: Run, format: str, path: Path, check: Check | None) -> dict[str, Any] | None:
        """Write `run.model` (on the CPU, in eval mode) to `path` in a format, and tell about it in JSON.

        check: what to hold the file against, None for --no-check; raise `ExportError` when it is not as good, and
        nothing is kept. `notes` in the answer are sentences for people. None for formats the plugin does not know.
        Default: safetensors and pth, a plain state dict.
        """

    @hookspec
    def report_sections(self, run: Run) -> list[Section]:  # type: ignore[empty-body]
        """Sections for the report of `run.evaluation`; every plugin's are shown, after the metrics."""

    @hookspec(firstresult=True)
    def write_report(self, run: Run, folder: Path, sections: list[Section]) -> Path | None:
        """Write `run.evaluation` and the sections of all plugins to `folder`; returns the folder.

        `medtrain.NONE`: no report. The default plugin writes metrics.json, the predictions, plots and report.html.
        """


class Lifecycle:
    """Called while a run goes on; each receives the one `run` object."""

    @hookspec
    def on_run_start(self, run: Run) -> None:
        """Before the first epoch, also after a resume."""

    @hookspec
    def on_epoch_start(self, run: Run) -> None:
        """Before the first batch of an epoch (again when a run resumes in the middle of one)."""

    @hookspec
    def on_step_end(self, run: Run) -> None:
        """After each optimizer step."""

    @hookspec
    def on_evaluate_end(self, run: Run) -> None:
        """After an evaluation; `run.evaluation` holds it."""

    @hookspec
    def on_epoch_end(self, run: Run) -> None:
        """After training, evaluation, schedule and early stopping of an epoch; `run.metrics` holds its record."""

    @hookspec
    def on_checkpoint(self, run: Run) -> None:
        """After a checkpoint is safely on disk; `run.checkpoint` is its folder."""

    @hookspec
    def on_run_end(self, run: Run) -> None:
        """After the last epoch of a run that was not interrupted."""

    @hookspec
    def on_exception(self, run: Run) -> None:
        """When the run ends by an exception, an interruption included; `run.exception` holds it."""


def _names(group: type) -> tuple[str, ...]:
    return tuple(name for name in vars(group) if not name.startswith("_"))


BUILDING = _names(Building)
DOING = _names(Doing)
LIFECYCLE = _names(Lifecycle)
ALL = BUILDING + DOING + LIFECYCLE
