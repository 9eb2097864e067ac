"""Converts training settings of the PIVOT guide (YAML) to a configuration of `medtrain run`.

`PLACES` maps the keys whose values stay as they are; the functions after it convert the rest. Keys that no function
reads are reported: nothing is dropped silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medtrain.errors import ConfigError, nearest

from medtrain_plugins.nodule.commands.guide_settings import PIVOT, TENSORBOARD, WANDB, ConvertedGuide, GuideSettings

# Key of the guide -> key of ours; `pivot.` stands for `plugins.pivot.`.
PLACES = {
    "data.train_dir": "pivot.train_data",
    "data.val_dir": "pivot.validation_data",
    "data.test_dir": "pivot.test_data",
    "data.annotations": "pivot.annotations",
    "data.patch_size": "pivot.sampling.patch_size",
    "data.stride": "pivot.sampling.stride",
    "data.positive_fraction": "pivot.sampling.positive_fraction",
    "data.patches_per_volume": "pivot.sampling.patches_per_volume",
    "data.num_workers": "data.num_workers",
    "data.prefetch_factor": "data.prefetch_factor",
    "data.pin_memory": "data.pin_memory",
    "data.persistent_workers": "data.persistent_workers",
    "model.base_filters": "pivot.model.base_filters",
    "model.depth": "pivot.model.depth",
    "model.activation": "pivot.model.activation",
    "model.gradient_checkpointing": "pivot.model.gradient_checkpointing",
    "model.deep_supervision": "pivot.model.deep_supervision",
    "training.epochs": "optimization.num_epochs",
    "training.batch_size": "data.batch_size",
    "training.accumulation_steps": "optimization.accumulation_steps",
    "training.optimizer.weight_decay": "optimization.weight_decay",
    "training.lr_scheduler.warmup_epochs": "scheduler.warmup_epochs",
    "training.lr_scheduler.min_lr": "scheduler.min_lr",
    "training.lr_scheduler.step_size": "scheduler.step_size",
    "training.lr_scheduler.milestones": "scheduler.milestones",
    "training.lr_scheduler.patience": "scheduler.patience",
    "training.loss.detection_weight": "pivot.loss.weights.heatmap",
    "training.loss.triage_weight": "pivot.loss.weights.triage",
    "training.loss.segmentation_weight": "pivot.loss.weights.segmentation",
    "training.loss.regression_loss.beta": "pivot.loss.beta",
    "training.loss.triage_loss.pos_weight": "pivot.loss.triage_pos_weight",
    "training.hard_negative_mining.enabled": "pivot.loss.hard_negative_mining.enabled",
    "training.hard_negative_mining.neg_pos_ratio": "pivot.loss.hard_negative_mining.neg_pos_ratio",
    "training.hard_negative_mining.batch_hard_ratio": "pivot.loss.hard_negative_mining.hardest_fraction",
    "training.pretrained.checkpoint": "transfer.checkpoint",
    "validation.interval": "optimization.evaluation_interval",
    "checkpointing.save_interval": "checkpoint.every_n_epochs",
    "checkpointing.keep_last_n": "checkpoint.keep_last_n",
    "checkpointing.save_best": "checkpoint.best",
    "device.cudnn_benchmark": "computational.benchmark",
    "device.cudnn_deterministic": "computational.deterministic",
    "device.seed": "run.seed",
}
# For `detection_loss`, and for a `loss` without parts.
HEATMAP_LOSS = {
    "alpha": "pivot.loss.alpha",
    "gamma": "pivot.loss.gamma",
    "smooth": "pivot.loss.smooth",
    "squared_pred": "pivot.loss.squared_pred",
    "pos_weight": "pivot.loss.pos_weight",
}
# Arguments of each optimizer, in `optimization.options`.
OPTIMIZERS = {
    "adamw": ("betas", "eps", "amsgrad"),
    "adam": ("betas", "eps", "amsgrad"),
    "sgd": ("momentum", "nesterov", "dampening"),
}
HEATMAP_LOSSES = {"focal": "focal", "dice": "dice", "bce": "bce", "penalty_reduced_focal": "penalty_reduced_focal"}
NETWORKS = {
    "unet": "residual_unet",
    "residual_unet": "residual_unet",
    "reference_unet": "reference_unet",
    "dynunet": "DynUNet",
    "segresnet": "SegResNet",
}
# Patterns of the parameter names of each network's encoder.
ENCODERS = {
    "residual_unet": ["*encoders.*", "*downs.*"],
    "reference_unet": ["backbone.encoders.*", "backbone.bottleneck.*"],
    "DynUNet": ["*input_block.*", "*downsamples.*", "*bottleneck.*"],
    "SegResNet": ["*convInit.*", "*down_layers.*"],
}
ANY_ENCODER = ["*encoder*"]
SCHEDULES = {"cosine": "cosine", "step": "step", "multistep": "multistep", "plateau": "plateau", "constant": "none"}
VALUES = {
    "froc": "cpm",
    "froc_score": "cpm",
    "cpm": "cpm",
    "dice": "detection_dice",
    "detection_dice": "detection_dice",
    "center_accuracy": "centre_accuracy",
    "centre_accuracy": "centre_accuracy",
    "size_accuracy": "size_accuracy",
    "loss": "loss",
}
AMP = {"float16": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16"}
VIEWS = ("flip_x", "flip_y", "flip_z", "rotate_90")


def import_guide(settings: Mapping[str, Any]) -> ConvertedGuide:
    """The guide's settings as a configuration. Raises ConfigError for invalid values."""
    given, found = GuideSettings(settings), ConvertedGuide()
    for key, place in PLACES.items():
        if isinstance(given.look(key), Mapping):
            raise ConfigError(f"{key}: a value is expected, not a section")
        if (value := given.take(key)) is not None:
            found.put(place, value)
    plugins = [PIVOT, *_logging(given, found)]
    found.put("run.plugins", plugins)
    _model(given, found)
    _optimizer(given, found)
    _schedule(given, found)
    _clipping(given, found)
    _loss(given, found)
    _augmentation(given, found)
    _transfer(given, found)
    _stages(given, found)
    _early_stopping(given, found)
    _validation(given, found)
    _device(given, found)
    _inference(given, found)
    if (folder := given.take("checkpointing.save_dir")) is not None:
        found.notes.append(f"checkpoints lie in the run directory: medtrain run --out {folder}")
    for key in given.left():
        found.unplaced.setdefault(key, _why(key))
    return found


def _model(given: GuideSettings, found: ConvertedGuide) -> None:
    kind = given.take("model.type")
    own = given.take("model.class")
    if kind is not None and (own is not None) != (str(kind).lower() == "custom"):
        raise ConfigError("model.class: the dotted path of your class goes with model.type custom, and only with it")
    name = str(own) if own is not None else None
    if name is None and kind is not None:
        name = NETWORKS.get(str(kind).lower())
        if name is None:
            raise ConfigError(f"model.type: {kind!r} is none of {', '.join(NETWORKS)}, custom{nearest(kind, NETWORKS)}")
    if name is not None:
        found.put("pivot.model.type", name)
    if str(kind).lower() == "unet":
        found.notes.append("model.type unet: the residual U-Net; reference_unet is the plain one, with fixed settings")
    channels = given.take("model.in_channels", 1)
    if channels != 1:
        found.unplaced["model.in_channels"] = f"{channels}: a CT scan has one channel"
    outputs = given.take("model.out_channels", 1)
    if outputs != 1 and own is not None:
        found.put("pivot.model.options.out_channels", outputs)
    elif outputs != 1:
        found.unplaced["model.out_channels"] = f"{outputs}: the heatmap has one channel; other heads have their own"
    normed = given.take("model.use_batch_norm")
    if normed is not None:
        found.put("pivot.model.norm", "batch" if normed else "instance")
        if not normed:
            found.notes.append("model.use_batch_norm false: instance norm, which does not depend on the batch")
    rate, wanted = given.take("model.dropout_rate"), given.take("model.use_dropout")
    if wanted and rate is None:
        raise ConfigError("model.use_dropout: say how much in model.dropout_rate")
    if wanted is False:
        found.put("pivot.model.dropout", 0.0)
    elif rate is not None:
        found.put("pivot.model.dropout", rate)


def _optimizer(given: GuideSettings, found: ConvertedGuide) -> None:
    kind = given.take("training.optimizer.type")
    if isinstance(given.look("training.optimizer"), str):
        kind = given.take("training.optimizer")
    if kind is not None and str(kind).lower() not in OPTIMIZERS:
        raise ConfigError(
            f"training.optimizer.type: {kind!r} is none of {', '.join(OPTIMIZERS)}{nearest(str(kind), OPTIMIZERS)}"
        )
    if kind is not None:
        found.put("optimization.optimizer", kind)
    for name in dict.fromkeys(name for names in OPTIMIZERS.values() for name in names):
        value = given.take(f"training.optimizer.{name}")
        if value is not None and name in OPTIMIZERS[str(kind or "adamw").lower()]:
            found.put(f"optimization.options.{name}", value)
        elif value is not None:
            found.unplaced[f"training.optimizer.{name}"] = f"{kind or 'adamw'} has no such setting"
    rate, own = given.take("training.learning_rate"), given.take("training.optimizer.learning_rate")
    if own is not None:
        if rate not in (None, own):
            found.notes.append(f"training.optimizer.learning_rate {own} is taken, not training.learning_rate {rate}")
        rate = own
    if rate is not None:
        found.put("optimization.learning_rate", rate)


def _schedule(given: GuideSettings, found: ConvertedGuide) -> None:
    kind, prefix = given.take("training.lr_scheduler.type"), "training.lr_scheduler."
    if kind is None:
        return
    name = SCHEDULES.get(str(kind).lower())
    if name is None:
        raise ConfigError(f"{prefix}type: {kind!r} is none of {', '.join(SCHEDULES)}{nearest(str(kind), SCHEDULES)}")
    found.put("scheduler.name", name)
    # Our `factor` stands for both.
    key = "factor" if name == "plateau" else "gamma"
    if name in ("plateau", "step", "multistep") and (factor := given.take(prefix + key)) is not None:
        found.put("scheduler.factor", factor)
    epochs, length = found.get("optimization.num_epochs"), given.look(prefix + "T_max")
    if name == "cosine" and length is not None and length != epochs:
        given.take(prefix + "T_max")
        found.unplaced[prefix + "T_max"] = (
            f"{length}: the cosine ends with the run, which has {epochs or 'as many as optimization.num_epochs says'} "
            "epochs"
        )
    elif name == "cosine":
        given.take(prefix + "T_max")
    if name == "plateau":
        if (monitor := given.take(prefix + "monitor")) is not None:
            found.put("validation.monitor", _value(monitor, prefix + "monitor"))
        _check_direction(given.take(prefix + "mode"), found.get("validation.monitor"), prefix + "mode")


def _clipping(given: GuideSettings, found: ConvertedGuide) -> None:
    prefix = "training.gradient_clipping"
    whole = given.look(prefix)
    if isinstance(whole, bool):
        given.take(prefix)
        if whole:
            found.put("optimization.clip_grad_norm", 1.0)
            found.notes.append("training.gradient_clipping true: the norm is clipped to 1")
        return
    enabled = given.take(f"{prefix}.enabled", bool(given.section(prefix)))
    norm, kind = given.take(f"{prefix}.max_norm"), given.take(f"{prefix}.norm_type")
    if not enabled:
        return
    found.put("optimization.clip_grad_norm", 1.0 if norm is None else norm)
    if kind is not None:
        found.put("optimization.clip_norm_type", kind)


def _loss(given: GuideSettings, found: ConvertedGuide) -> None:
    kind = given.take("training.loss.type")
    if kind in HEATMAP_LOSSES:
        _heatmap_loss(given, found, "training.loss", str(kind))
        found.notes.append(f"training.loss.type {kind}: of the heatmap; the other heads keep their losses and weights")
    elif kind not in (None, "multi_task"):
        known = (*HEATMAP_LOSSES, "multi_task")
        raise ConfigError(f"training.loss.type: {kind!r} is none of {', '.join(known)}{nearest(str(kind), known)}")
    if (weight := given.take("training.loss.regression_weight")) is not None:
        found.put("pivot.loss.weights.log_diameter", weight)
        found.put("pivot.loss.weights.offset", weight)
        found.notes.append("training.loss.regression_weight: of diameters and of offsets")
    if (part := given.take("training.loss.detection_loss.type")) is not None:
        if part not in HEATMAP_LOSSES:
            raise ConfigError(f"training.loss.detection_loss.type: {part!r} is none of {', '.join(HEATMAP_LOSSES)}")
        _heatmap_loss(given, found, "training.loss.detection_loss", str(part))
    for name, only in (("regression_loss", "smooth_l1"), ("triage_loss", "bce")):
        if (part := given.take(f"training.loss.{name}.type")) not in (None, only):
            found.unplaced[f"training.loss.{name}.type"] = f"{part}: it is {only}"


def _heatmap_loss(given: GuideSettings, found: ConvertedGuide, prefix: str, kind: str) -> None:
    found.put("pivot.loss.heatmap", HEATMAP_LOSSES[kind])
    for name, place in HEATMAP_LOSS.items():
        if (value := given.take(f"{prefix}.{name}")) is not None:
            found.put(place, value)


def _augmentation(given: GuideSettings, found: ConvertedGuide) -> None:
    from medtrain_plugins.nodule.options import AugmentationOptions

    # The guide and medtrain use the same names here.
    for name, options in AugmentationOptions.model_fields.items():
        key = f"augmentation.{name}"
        if name == "enabled":
            if (enabled := given.take(key)) is not None:
                found.put(f"pivot.{key}", enabled)
            continue
        for part in given.section(key):
            if part in getattr(options.annotation, "model_fields", {}):
                found.put(f"pivot.{key}.{part}", given.take(f"{key}.{part}"))


def _transfer(given: GuideSettings, found: ConvertedGuide) -> None:
    prefix = "training.pretrained."
    frozen, epochs = given.take(prefix + "freeze_encoder"), given.take(prefix + "freeze_epochs")
    if not frozen:
        return
    name = found.get("pivot.model.type") or "residual_unet"
    found.put("transfer.freeze", ENCODERS.get(name, ANY_ENCODER))
    if name not in ENCODERS:
        found.notes.append(f"training.pretrained.freeze_encoder: of {name}, what has 'encoder' in its name")
    if epochs is not None:
        found.put("transfer.freeze_epochs", epochs)


def _stages(given: GuideSettings, found: ConvertedGuide) -> None:
    """The stages of patch sizes and the stages of diameters, merged by epoch into one list."""
    courses = []
    for name in ("progressive", "curriculum"):
        prefix = f"training.{name}"
        stages = given.take(f"{prefix}.stages")
        enabled = given.take(f"{prefix}.enabled", stages is not None)
        strategy = given.take(f"{prefix}.strategy", "size_based")
        if strategy != "size_based":
            found.unplaced[f"{prefix}.strategy"] = f"{strategy}: a curriculum goes by size"
        if not enabled:
            if stages:
                found.notes.append(f"{prefix}.enabled is false: its stages are left out")
            continue
        courses.append(_course(stages, prefix, found))
    if not courses:
        return
    merged = merge_stages(*courses)
    if len(courses) > 1:
        found.notes.append(f"training.progressive and training.curriculum: merged by epoch into {len(merged)} stages")
    found.put("stages", merged)


def _course(stages: Any, prefix: str, found: ConvertedGuide) -> list[dict[str, Any]]:
    if not isinstance(stages, list) or not all(isinstance(stage, Mapping) and "epochs" in stage for stage in stages):
        raise ConfigError(f"{prefix}.stages: a list of stages, each with its epochs, is expected")
    course = []
    for number, stage in enumerate(stages):
        made: dict[str, Any] = {}
        for name, value in stage.items():
            if name in ("epochs", "patch_size", "batch_size"):
                made[name] = value
            elif name in ("min_diameter", "max_diameter", "positive_fraction"):
                made.setdefault("filter", {})[name] = value
            else:
                found.unplaced[f"{prefix}.stages.{number}.{name}"] = "stages do not have this key"
        course.append(made)
    return course


def merge_stages(*courses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merges parallel lists of stages: a new stage wherever one of them changes; each list's last stage goes on."""
    ends = sorted({sum(stage["epochs"] for stage in course[: n + 1]) for course in courses for n in range(len(course))})
    merged = []
    for start, end in zip([0, *ends], ends, strict=False):
        stage: dict[str, Any] = {"epochs": end - start}
        for course in courses:
            own = _stage_at(course, start)
            stage |= {name: value for name, value in own.items() if name not in ("epochs", "filter")}
            if "filter" in own:
                stage["filter"] = {**stage.get("filter", {}), **own["filter"]}
        merged.append(stage)
    return merged


def _stage_at(course: Sequence[Mapping[str, Any]], epoch: int) -> Mapping[str, Any]:
    end = 0
    for stage in course:
        end += stage["epochs"]
        if epoch < end:
            return stage
    return course[-1]


def _early_stopping(given: GuideSettings, found: ConvertedGuide) -> None:
    prefix = "training.early_stopping."
    settings = {name: given.take(prefix + name) for name in ("patience", "min_delta", "monitor", "mode")}
    known = {name: value for name, value in settings.items() if value is not None}
    if not given.take(prefix + "enabled", bool(known)):
        if known:
            found.notes.append("training.early_stopping.enabled is false: its settings are left out")
        return
    if "patience" not in known:
        raise ConfigError(
            f"{prefix}patience: give the number of evaluations without improvement after which training stops"
        )
    if "monitor" in known:
        known["monitor"] = _value(known["monitor"], prefix + "monitor")
    for name, value in known.items():
        found.put(f"early_stopping.{name}", value)


def _validation(given: GuideSettings, found: ConvertedGuide) -> None:
    unknown = [name for name in given.listed("validation.metrics") if name not in VALUES]
    if unknown:
        found.unplaced["validation.metrics"] = f"{', '.join(map(str, unknown))}: no such value is computed"
    if (best := given.take("validation.save_best_metric")) is not None:
        chosen, before = _value(best, "validation.save_best_metric"), found.get("validation.monitor")
        if before not in (None, chosen):
            found.unplaced["training.lr_scheduler.monitor"] = (
                f"the schedule follows validation.save_best_metric, {best}"
            )
        found.put("validation.monitor", chosen)


def _logging(given: GuideSettings, found: ConvertedGuide) -> list[str]:
    chosen = []
    if given.take("logging.tensorboard"):
        chosen.append(TENSORBOARD)
    entries = {name: given.take(f"logging.wandb.{name}") for name in ("project", "entity", "tags")}
    entries = {name: value for name, value in entries.items() if value is not None}
    if given.take("logging.wandb.enabled", bool(entries)):
        chosen.append(WANDB)
        for name, value in entries.items():
            found.put(f"{WANDB}.{name}", value)
    elif entries:
        found.notes.append("logging.wandb.enabled is false: its settings are left out")
    if (folder := given.take("logging.log_dir")) is not None:
        found.notes.append(f"logging.log_dir {folder}: TensorBoard's files lie in the run directory, in split-0")
    if (interval := given.take("logging.log_interval")) is not None:
        if not chosen:
            found.unplaced["logging.log_interval"] = "nothing logs by step without TensorBoard or W&B"
        for name in chosen:
            found.put(f"{name}.gradient_interval", interval)
    return chosen


def _device(given: GuideSettings, found: ConvertedGuide) -> None:
    kind, ids = given.take("device.type"), given.listed("device.gpu_ids")
    mode = given.take("device.parallel_mode")
    if kind not in (None, "auto", "cpu", "cuda", "mps"):
        raise ConfigError(f"device.type: {kind!r} is none of auto, cpu, cuda, mps")
    if kind is not None:
        found.put("computational.device", f"cuda:{ids[0]}" if kind == "cuda" and len(ids) == 1 else kind)
    if mode not in (None, "dp", "ddp"):
        raise ConfigError(f"device.parallel_mode: {mode!r} is neither ddp nor dp")
    if mode == "dp":
        found.notes.append(
            "device.parallel_mode dp: becomes ddp, one process per GPU, faster and with the same numbers; "
            "training.batch_size is now that of each process"
        )
    if len(ids) > 1:
        visible = ",".join(map(str, ids))
        found.notes.append(
            f"device.gpu_ids: start with CUDA_VISIBLE_DEVICES={visible} medtrain run --nproc {len(ids)} --config ..."
        )
    elif ids and kind is None:
        found.put("computational.device", f"cuda:{ids[0]}")
    mixed, dtype = given.take("device.mixed_precision"), given.take("device.amp_dtype")
    if dtype is not None and dtype not in AMP:
        raise ConfigError(f"device.amp_dtype: {dtype!r} is none of {', '.join(AMP)}")
    if mixed is not None:
        found.put("computational.amp", (AMP[dtype] if dtype else "auto") if mixed else "no")
    elif dtype is not None:
        found.put("computational.amp", AMP[dtype])


def _inference(given: GuideSettings, found: ConvertedGuide) -> None:
    prefix = "inference.tta."
    names, count = given.take(prefix + "augmentation_types"), given.take(prefix + "num_augmentations")
    if given.take(prefix + "enabled", names is not None or count is not None):
        found.put("pivot.inference.tta", list(VIEWS) if names is None else names)
        if count is not None:
            found.put("pivot.inference.tta_count", count)


def _value(name: Any, key: str) -> str:
    """Our name of a metric of the validation group."""
    plain = str(name).removeprefix("val_").removeprefix("val/")
    if plain not in VALUES:
        raise ConfigError(f"{key}: there is no value {name!r}{nearest(plain, VALUES)}; there are {', '.join(VALUES)}")
    return VALUES[plain]


def _check_direction(mode: Any, value: str | None, key: str) -> None:
    """Raises ConfigError if the mode is not the metric's own."""
    if mode is not None and mode != ("min" if value == "loss" else "max"):
        raise ConfigError(
            f"{key}: {mode!r}, but a {'smaller' if value == 'loss' else 'larger'} {value or 'cpm'} is better"
        )


def _why(key: str) -> str:
    known = [*PLACES, *(f"training.loss.{name}" for name in HEATMAP_LOSS)]
    return f"no such key is known{nearest(key, known)}, or it does not go with the others"
