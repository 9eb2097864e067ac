"""The configuration of a run: typed sections, and how layers of TOML and flags become one.

Layers, the later winning: core defaults < plugin presets < files < `--set` and flags. Every key remembers where
its value came from, so that an error can name file, line and key.

Trackers are plugins, and their options lie with them; the section `tracking` is another way to write them:
`tracking.NAME.KEY` is `plugins.NAME.KEY`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from medtrain.errors import nearest


class SectionModel(BaseModel):
    """Base of every section and of plugins' options: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class RunSection(SectionModel):
    """Which plugins, and what the run is called."""

    plugins: list[str] = Field([], description="plugins, in command-line order")
    preset: str = Field("", description="preset the run started from")
    name: str = Field("", description="appended to the run directory's name")
    seed: int = Field(0, ge=0, description="all randomness of the run follows from it")
    concurrent_splits: int = Field(1, ge=1, description="`medtrain run`: splits that are trained at the same time")


class DataSection(SectionModel):
    """Where the data are and how they are fed."""

    table: Path | None = Field(None, description="table of samples (what kind, the plugin says)")
    images: Path | None = Field(None, description="folder of the images the table names")
    batch_size: int = Field(8, ge=1, description="samples per process and step")
    evaluation_batch_size: int | None = Field(None, ge=1, description="the same outside training")
    num_workers: int = Field(0, ge=0, description="loader processes; 0 loads in the training process")
    evaluation_num_workers: int | None = Field(None, ge=0, description="the same outside training")
    prefetch_factor: int | None = Field(None, ge=1, description="batches each loader process is ahead; torch's: 2")
    persistent_workers: bool = Field(True, description="loader processes outlive an epoch")
    pin_memory: bool | None = Field(None, description="page-locked batches; default: on a GPU")
    drop_last: bool = Field(False, description="leave out an incomplete training batch at an epoch's end")
    sampling: Literal["shuffle", "sequential", "class_balanced", "weighted"] = Field(
        "shuffle",
        description="order of training samples; with replacement: class_balanced (every class equally often), weighted "
        "(by the dataset's weights)",
    )
    max_batches: int | None = Field(None, ge=1, description="an epoch ends after this many training batches")
    validation_fraction: float = Field(0.2, gt=0, lt=1, description="when the core splits one dataset")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="when the core splits one dataset")
    num_folds: int = Field(0, ge=0, description="folds of one dataset, each a split of the run; 0: one split")
    splits: Path | None = Field(None, description="folder made by `medtrain data split`, instead of fractions")


class ParameterGroup(SectionModel):
    """Parameters whose name matches `pattern` (shell style) train at `lr_scale` times the learning rate."""

    pattern: str
    lr_scale: float = Field(1.0, ge=0)
    weight_decay: float | None = Field(None, ge=0)


class OptimizationSection(SectionModel):
    """The optimizers, their steps, and how many of them."""

    num_epochs: int = Field(10, ge=1)
    max_steps: int | None = Field(None, ge=1, description="end the run after this many optimizer steps")
    max_seconds: float | None = Field(None, gt=0, description="end the run after this long, resumed parts included")
    optimizer: str = Field("AdamW", description="a class of torch.optim, in upper or lower case")
    options: dict[str, Any] = Field({}, description="what the optimizer takes besides rate and decay: betas, eps, ...")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    decay_norm_and_bias: bool = Field(True, description="false: no weight decay on normalisation layers and biases")
    groups: list[ParameterGroup] = Field([], description="first matching group wins")
    freeze: list[str] = Field([], description="patterns of parameters that do not train (shell style)")
    accumulation_steps: int = Field(1, ge=1, description="batches per optimizer step")
    evaluation_interval: int = Field(1, ge=0, description="epochs between evaluations; 0: never")
    evaluation_every_n_steps: int = Field(0, ge=0, description="evaluate within epochs too, every N steps; 0: never")
    clip_grad_value: float | None = Field(None, gt=0, description="largest gradient entry; before the norm is clipped")
    clip_grad_norm: float | None = Field(None, gt=0, description="largest gradient norm")
    clip_norm_type: float = Field(2.0, gt=0)
    nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="a loss that is not finite ends the run, or its step is left out (costs a look per step)"
    )
    max_skipped: int = Field(10, ge=0, description="skip: steps in a row that may be left out before the run ends")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="evaluate a moving average of the weights")


COURSES = ("none", "plateau", "cosine", "linear", "polynomial", "step", "multistep", "exponential", "onecycle")


# What Python users hand to a Trainer.
OptimizationConfig = OptimizationSection


class SchedulerSection(SectionModel):
    """Linear warm-up in optimizer steps, then a course of the learning rate."""

    name: str = Field("none", description=f"{', '.join(COURSES)}, or a class of torch.optim.lr_scheduler")
    options: dict[str, Any] = Field({}, description="onecycle and classes of torch: their arguments")
    interval: Literal["auto", "epoch", "step"] = Field(
        "auto", description="when the rate moves; auto: cosine, linear, polynomial, onecycle by step, the rest by epoch"
    )
    warmup_steps: int = Field(0, ge=0)
    warmup_epochs: float = Field(0.0, ge=0, description="the same in epochs")
    factor: float = Field(0.5, gt=0, lt=1, description="plateau, step, multistep, exponential: rate is multiplied with")
    patience: int = Field(5, ge=0, description="plateau: epochs without improvement before the rate is reduced")
    step_size: int = Field(10, ge=1, description="step: epochs (or steps) between two multiplications")
    milestones: list[int] = Field([], description="multistep: epochs (or steps) of the multiplications")
    power: float = Field(1.0, gt=0, description="polynomial: (1 - part of the run that is done) to this power")
    min_lr: float = Field(0.0, ge=0, description="floor of the largest group's rate, for all but onecycle and torch's")

    @field_validator("name")
    @classmethod
    def _is_a_course(cls, name: str) -> str:
        # Names in upper case are torch's, which is not imported for this.
        if name not in COURSES and not name[:1].isupper():
            raise ValueError(
                f"should be {', '.join(map(repr, COURSES))} or a class of torch.optim.lr_scheduler"
                f"{nearest(name, COURSES)}"
            )
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("warmup_steps and warmup_epochs are both given; leave one out")
        if self.name == "plateau" and self.interval == "step":
            raise ValueError("interval 'step' does not go with plateau, which waits for the evaluation of an epoch")
        if self.name == "multistep" and not self.milestones:
            raise ValueError("multistep needs milestones, for example [30, 60]")
        if self.options and self.name in COURSES and self.name != "onecycle":
            raise ValueError(f"options are for onecycle and torch's classes; {self.name} has keys of its own")
        return self


class ValidationSection(SectionModel):
    """What the validation group decides."""

    monitor: str = Field("", description="value that picks the best model; default: the plugin's first metric")


class CheckpointSection(SectionModel):
    """When the state of the run is written, besides `last` at the end of the run."""

    every_n_epochs: int = Field(0, ge=0, description="keep `epoch-NNNN` every N epochs; 0: never")
    every_n_steps: int = Field(0, ge=0, description="keep `step-NNNNNNNN` every N optimizer steps; 0: never")
    keep_last_n: int | None = Field(None, ge=1, description="of the periodic ones, keep the newest N")
    epochs: list[Annotated[int, Field(ge=1)]] = Field([], description="keep `epoch-NNNN` after these epochs, for good")
    last_every_n_epochs: int = Field(1, ge=0, description="renew `last` every N epochs; 0: only at the end")
    last_every_n_steps: int = Field(0, ge=0, description="renew `last` every N optimizer steps too; 0: never")
    save_last: bool = Field(True, description="false: drop `last` when the run is complete and another one is kept")
    best: bool = Field(True, description="keep `best-<monitor>`")
    metrics: list[str] = Field([], description="keep `best-<value>` for these values too")
    top_k: int = Field(1, ge=1, description="of each value the best k: `best-<value>`, `best-<value>-2`, ...")


class EarlyStoppingSection(SectionModel):
    """Stop when the monitored value no longer improves, or leaves its bounds."""

    patience: int | None = Field(None, ge=1, description="evaluations without improvement; none: never stop")
    min_delta: float = Field(0.0, ge=0)
    monitor: str | list[str] = Field("", description="a value or several; default: `validation.monitor`")
    mode: Literal["auto", "min", "max"] = "auto"
    when: Literal["all", "any"] = Field("all", description="of several values: which of them have to agree")
    check_finite: bool = Field(True, description="NaN or an infinity stops, unless the value is undefined for a reason")
    upper_bound: float | None = Field(None, description="stop when the value reaches it")
    lower_bound: float | None = Field(None, description="stop when the value falls to it")


class Stage(SectionModel):
    """A part of the training with data of its own: larger patches, harder samples, smaller batches."""

    epochs: int = Field(ge=1)
    name: str = ""
    batch_size: int | None = Field(None, ge=1, description="instead of `data.batch_size`")
    patch_size: list[Annotated[int, Field(ge=1)]] = Field([], description="what it means, the data's plugin says")
    filter: dict[str, Any] = Field({}, description="which training samples; understood by the data's plugin")
    learning_rate_scale: float = Field(1.0, gt=0, description="multiplies the scheduled learning rate")


class TransferSection(SectionModel):
    """Start from other weights, and which parts rest for how long. Patterns (shell style) are of parameter names."""

    checkpoint: Path | None = Field(None, description="weights file, run directory or checkpoint to start from")
    include: list[str] = Field(["*"], description="what is taken from it")
    exclude: list[str] = Field([], description="what is not")
    lr_scale: float = Field(1.0, gt=0, description="learning rate of what `include` and `exclude` name, relative")
    freeze: list[str] = Field([], description="patterns of frozen parameters")
    freeze_epochs: int = Field(0, ge=0, description="for so many epochs; 0: for good")


class ComputationalSection(SectionModel):
    """How the arithmetic is done."""

    device: str = Field("auto", description="auto (a GPU when there is one), cpu, cuda, cuda:N or mps")
    amp: Literal["auto", "no", "bf16", "fp16"] = Field("auto", description="auto: bf16 on CUDA, none on CPU")
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    deterministic: bool = Field(False, description="ask torch for deterministic operations")
    benchmark: bool = Field(False, description="let cuDNN try its algorithms and take the fastest, per input size")
    allow_tf32: bool | None = Field(None, description="TF32 in float32 products and convolutions; none: torch's own")
    compile: bool = Field(False, description="torch.compile the model")
    find_unused_parameters: bool = Field(False, description="DDP: for models with parts a batch may skip")

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError("should be 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'")
        return device

    @model_validator(mode="after")
    def _is_repeatable(self) -> Self:
        if self.deterministic and self.benchmark:
            raise ValueError("benchmark chooses algorithms by their speed today; deterministic cannot be kept with it")
        return self


class RunConfig(SectionModel):
    """Everything a run depends on besides its data."""

    run: RunSection = Field(default_factory=RunSection)  # type: ignore[arg-type]
    data: DataSection = Field(default_factory=DataSection)  # type: ignore[arg-type]
    optimization: OptimizationSection = Field(default_factory=OptimizationSection)  # type: ignore[arg-type]
    scheduler: SchedulerSection = Field(default_factory=SchedulerSection)  # type: ignore[arg-type]
    validation: ValidationSection = Field(default_factory=ValidationSection)  # type: ignore[arg-type]
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)  # type: ignore[arg-type]
    early_stopping: EarlyStoppingSection = Field(default_factory=EarlyStoppingSection)  # type: ignore[arg-type]
    stages: list[Stage] = Field([], description="stages of the training; the last one lasts to the end")
    transfer: TransferSection = Field(default_factory=TransferSection)  # type: ignore[arg-type]
    computational: ComputationalSection = Field(default_factory=ComputationalSection)  # type: ignore[arg-type]
    plugins: dict[str, Any] = Field({}, description="options by plugin")
    _fresh: bool = PrivateAttr(default=False)
    _stage: Stage | None = PrivateAttr(default=None)
    _split: int = PrivateAttr(default=0)

    @field_validator("stages")
    @classmethod
    def _fit_into_epochs(cls, stages: list[Stage], info: ValidationInfo) -> list[Stage]:
        optimization = info.data.get("optimization")
        if stages and optimization is not None:
            total = sum(stage.epochs for stage in stages)
            if "num_epochs" not in optimization.model_fields_set:
                optimization.num_epochs = total
            check_stages(stages, optimization.num_epochs)
        return stages

    @property
    def stage(self) -> Stage | None:
        """The stage of `[[stages]]` that data are asked for; None without stages, and for the run's own members."""
        return self._stage

    @property
    def split(self) -> int:
        """The number of the split that data are asked for."""
        return self._split

    def for_split(self, number: int) -> RunConfig:
        """The same configuration for split `number` of the run."""
        config = self.model_copy()
        config._split = number
        return config

    def for_stage(self, stage: Stage) -> RunConfig:
        """The same configuration within a stage: its batch size, and `stage` for whoever builds data."""
        size = self.data.batch_size if stage.batch_size is None else stage.batch_size
        config = self.model_copy(update={"data": self.data.model_copy(update={"batch_size": size})})
        config._stage = stage
        return config

    @property
    def fresh(self) -> bool:
        """True when weights follow from elsewhere (resume, eval) or none are wanted: no pretrained part is needed."""
        return self._fresh

    def with_fresh_model(self) -> RunConfig:
        """The same configuration for building a model that needs no pretrained parts."""
        config = self.model_copy()
        config._fresh = True
        return config

    def with_data(self, changes: Mapping[str, Any]) -> RunConfig:
        """The same configuration with other values in its section `data`."""
        return self.model_copy(update={"data": DataSection.model_validate({**self.data.model_dump(), **changes})})

    def options(self, plugin: str) -> Any:
        """The validated options of a plugin."""
        return self.plugins[plugin]

    def to_toml(self) -> str:
        """The resolved configuration, as it is kept in the run directory."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def check_stages(stages: Sequence[Stage], num_epochs: int) -> None:
    """Raise ValueError when stages are longer than the run."""
    total = sum(stage.epochs for stage in stages)
    if total > num_epochs:
        raise ValueError(f"the stages have {total} epochs together, optimization.num_epochs is {num_epochs}")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
