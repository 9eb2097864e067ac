"""Every YAML block of the training guide becomes a configuration that says the same; what has no place is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli
import yaml
from click.testing import CliRunner
from medtrain import RunConfig
from medtrain.config import Layers
from medtrain.errors import ConfigError
from medtrain_cli.main import cli
from medtrain_plugins.nodule.commands.guide_settings import ConvertedGuide, merge, read_yaml
from medtrain_plugins.nodule.commands.pivot_guide import import_guide, merge_stages
from medtrain_plugins.nodule.options import PivotOptions
from medtrain_plugins.tracking.options import TensorBoardOptions, WandBOptions

GUIDE = Path(__file__).parent / "guide"
FRAGMENTS = sorted(path.stem for path in GUIDE.glob("*.yaml") if path.stem not in ("minimal", "complete"))
OPTIONS = {"pivot": PivotOptions, "tensorboard": TensorBoardOptions, "wandb": WandBOptions}


def imported(name: str, *changes: dict[str, Any]) -> ConvertedGuide:
    """A block of the guide, the fragments laid over the minimal one; `changes` over it."""
    settings = read_yaml(GUIDE / f"{name}.yaml")
    if name not in ("minimal", "complete"):
        settings = merge(read_yaml(GUIDE / "minimal.yaml"), settings)
    for change in changes:
        settings = merge(settings, change)
    return import_guide(settings)


def resolved(found: ConvertedGuide) -> tuple[RunConfig, PivotOptions]:
    layers = Layers()
    layers.add(found.values, "guide")
    config = layers.build({name: OPTIONS[name] for name in found.values["run"]["plugins"]})
    return config, config.options("pivot")


def block(name: str) -> tuple[RunConfig, PivotOptions]:
    found = imported(name)
    assert found.unplaced == {}
    return resolved(found)


def test_there_are_all_blocks_of_the_guide() -> None:
    assert len(FRAGMENTS) == 22


def test_minimal() -> None:
    config, options = block("minimal")
    assert config.run.plugins == ["pivot"]
    assert (config.optimization.num_epochs, config.data.batch_size) == (100, 2)
    assert config.optimization.learning_rate == 0.001
    assert options.train_data == Path("data/processed/train")
    assert options.validation_data == Path("data/processed/val")
    assert options.annotations == Path("data/annotations.csv")
    assert (options.model.type, options.model.base_filters) == ("residual_unet", 32)


def test_complete() -> None:
    found = imported("complete")
    config, options = resolved(found)
    assert found.unplaced == {}
    assert options.test_data == Path("data/processed/test")
    assert (options.sampling.patch_size, options.sampling.stride) == ((128,) * 3, (64,) * 3)
    data = config.data
    assert (data.num_workers, data.prefetch_factor, data.pin_memory, data.persistent_workers) == (8, 2, True, True)
    assert config.optimization.accumulation_steps == 4
    assert (config.scheduler.name, config.scheduler.warmup_epochs, config.scheduler.min_lr) == ("cosine", 5, 1e-5)
    loss = options.loss
    assert loss.weights == {"heatmap": 1.0, "log_diameter": 0.5, "offset": 0.5, "triage": 0.3}
    assert (loss.heatmap, loss.alpha, loss.gamma, loss.beta, loss.triage_pos_weight) == ("focal", 0.25, 2.0, 1.0, 3.0)
    mining = loss.hard_negative_mining
    assert (mining.enabled, mining.neg_pos_ratio, mining.hardest_fraction) == (True, 3, 0.5)
    changes = options.augmentation
    assert changes.enabled and changes.random_flip.axes == (0, 1, 2)
    assert (changes.random_rotation.probability, changes.random_rotation.max_angle) == (0.5, 15)
    assert changes.random_scale.scale_range == (0.9, 1.1)
    assert (changes.random_noise.probability, changes.random_noise.noise_std) == (0.3, 0.01)
    elastic = changes.elastic_deformation
    assert (elastic.probability, elastic.alpha, elastic.sigma) == (0.2, 10, 3)
    assert config.optimization.evaluation_interval == 1
    assert config.validation.monitor == "cpm"
    assert (config.checkpoint.every_n_epochs, config.checkpoint.keep_last_n, config.checkpoint.best) == (5, 3, True)
    assert config.run.plugins == ["pivot", "tensorboard"]
    assert config.options("tensorboard").gradient_interval == 10
    assert (config.computational.device, config.computational.amp, config.computational.benchmark) == (
        "cuda",
        "auto",
        True,
    )
    told = "\n".join(found.notes)
    assert "--nproc 2" in told and "CUDA_VISIBLE_DEVICES=0,1" in told
    assert "--out checkpoints" in told and "wandb.enabled is false" in told


def test_model_blocks() -> None:
    _, options = block("unet")
    model = options.model
    assert (model.norm, model.dropout, model.activation, model.depth) == ("batch", 0.1, "relu", 4)
    _, options = block("custom")
    assert options.model.type == "src.model.custom.CustomDetector"
    _, options = resolved(imported("unet", {"model": {"use_batch_norm": False, "use_dropout": False}}))
    assert (options.model.norm, options.model.dropout) == ("instance", 0.0)
    _, options = resolved(imported("custom", {"model": {"out_channels": 16}}))
    assert options.model.options == {"out_channels": 16}


def test_loss_blocks() -> None:
    _, options = block("focal")
    assert (options.loss.heatmap, options.loss.alpha, options.loss.gamma) == ("focal", 0.25, 2.0)
    _, options = block("dice")
    assert (options.loss.heatmap, options.loss.smooth, options.loss.squared_pred) == ("dice", 1.0, True)
    _, options = block("multi_task")
    assert options.loss.weights == {"heatmap": 1.0, "log_diameter": 0.5, "offset": 0.5, "triage": 0.3}
    _, options = block("hard_negatives")
    mining = options.loss.hard_negative_mining
    assert (mining.enabled, mining.neg_pos_ratio, mining.hardest_fraction) == (True, 3, 0.5)


def test_optimizer_blocks() -> None:
    config, _ = block("adamw")
    assert config.optimization.optimizer == "adamw"
    # YAML reads 1e-8 as text.
    assert config.optimization.options == {"betas": [0.9, 0.999], "eps": 1e-8}
    assert config.optimization.weight_decay == 1e-4
    found = imported("sgd")
    config, _ = resolved(found)
    assert config.optimization.options == {"momentum": 0.9, "nesterov": True}
    assert config.optimization.learning_rate == 0.01
    assert any("learning_rate 0.01 is taken" in note for note in found.notes)


def test_schedule_blocks() -> None:
    config, _ = block("cosine")
    assert (config.scheduler.name, config.scheduler.warmup_epochs, config.scheduler.min_lr) == ("cosine", 5, 1e-5)
    config, _ = block("step")
    assert (config.scheduler.name, config.scheduler.step_size, config.scheduler.factor) == ("step", 30, 0.1)
    config, _ = block("plateau")
    assert (config.scheduler.name, config.scheduler.factor, config.scheduler.patience) == ("plateau", 0.5, 5)
    assert (config.validation.monitor, config.scheduler.min_lr) == ("cpm", 1e-5)
    config, _ = block("clipping")
    assert (config.optimization.clip_grad_norm, config.optimization.clip_norm_type) == (1.0, 2)


def test_a_cosine_that_does_not_end_with_the_run_is_told() -> None:
    found = imported("cosine", {"training": {"epochs": 60}})
    assert list(found.unplaced) == ["training.lr_scheduler.T_max"]


def test_a_plateau_in_the_wrong_direction_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lr_scheduler\.mode.*larger cpm is better"):
        imported("plateau", {"training": {"lr_scheduler": {"mode": "min"}}})


def test_logging_and_early_stopping_blocks() -> None:
    assert "tensorboard" in block("tensorboard")[0].run.plugins
    config, _ = block("wandb")
    wandb = config.options("wandb")
    assert (wandb.project, wandb.entity) == ("pivot-nodule-detection", "your-team")
    assert wandb.tags == ["unet", "focal-loss", "aug"]
    stopping = block("early_stopping")[0].early_stopping
    assert (stopping.patience, stopping.min_delta, stopping.monitor, stopping.mode) == (15, 0.001, "cpm", "max")


def test_device_blocks() -> None:
    found = imported("data_parallel")
    assert resolved(found)[0].computational.device == "cuda"
    assert any("dp: becomes ddp" in note for note in found.notes)
    assert any("--nproc 4" in note for note in found.notes)
    assert not any("becomes ddp" in note for note in imported("distributed").notes)
    assert block("mixed_precision")[0].computational.amp == "fp16"
    found = imported("mixed_precision", {"device": {"amp_dtype": "bfloat16"}})
    assert resolved(found)[0].computational.amp == "bf16"
    found = imported("mixed_precision", {"device": {"mixed_precision": False}})
    assert resolved(found)[0].computational.amp == "no"
    found = imported("minimal", {"device": {"type": "cuda", "gpu_ids": [3]}})
    assert resolved(found)[0].computational.device == "cuda:3"


def test_transfer_freezes_the_encoder_of_the_network_that_is_built() -> None:
    from fnmatch import fnmatchcase

    from medtrain_plugins.nodule.model.build import build_detector

    config, _ = block("pretrained")
    assert config.transfer.checkpoint == Path("checkpoints/pretrained_unet.pth")
    assert config.transfer.freeze_epochs == 10
    for kind in ("unet", "reference_unet", "dynunet", "segresnet"):
        config, options = resolved(imported("pretrained", {"model": {"type": kind}}))
        model = build_detector(options.model.type, base_filters=4, depth=3)
        names = [name for name, _ in model.named_parameters()]
        frozen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in config.transfer.freeze)}
        assert all(any(fnmatchcase(name, pattern) for name in names) for pattern in config.transfer.freeze)
        assert not any("head" in name or "up" in name for name in frozen)
        assert 0 < len(frozen) < len(names)


def test_stages() -> None:
    config, _ = block("progressive")
    told = [(stage.epochs, stage.patch_size, stage.batch_size) for stage in config.stages]
    assert told == [(30, [64] * 3, 8), (40, [96] * 3, 4), (30, [128] * 3, 2)]
    config, _ = block("curriculum")
    told = [(stage.epochs, stage.filter) for stage in config.stages]
    assert told == [(20, {"min_diameter": 10}), (30, {"min_diameter": 5}), (50, {"min_diameter": 0})]


def test_progressive_and_curriculum_together_are_merged_by_epoch() -> None:
    found = imported("progressive", read_yaml(GUIDE / "curriculum.yaml"))
    stages = resolved(found)[0].stages
    told = [(stage.epochs, stage.patch_size[0], stage.batch_size, stage.filter["min_diameter"]) for stage in stages]
    assert told == [(20, 64, 8, 10), (10, 64, 8, 5), (20, 96, 4, 5), (20, 96, 4, 0), (30, 128, 2, 0)]
    assert any("merged by epoch into 5 stages" in note for note in found.notes)


def test_merging_holds_the_last_stage_of_the_shorter_course() -> None:
    merged = merge_stages([{"epochs": 2, "patch_size": [8]}], [{"epochs": 1, "filter": {"a": 1}}, {"epochs": 3}])
    assert merged == [
        {"epochs": 1, "patch_size": [8], "filter": {"a": 1}},
        {"epochs": 1, "patch_size": [8]},
        {"epochs": 2, "patch_size": [8]},
    ]


def test_tta_block() -> None:
    _, options = block("tta")
    assert options.inference.tta == ["flip_x", "flip_y", "flip_z", "rotate_90"]
    assert options.inference.tta_count == 8
    _, options = resolved(imported("tta", {"inference": {"tta": {"enabled": False}}}))
    assert options.inference.tta == []


def test_further_keys_of_the_same_kind() -> None:
    more = {
        "data": {"positive_fraction": 0.7, "patches_per_volume": 3},
        "model": {"gradient_checkpointing": True, "deep_supervision": True},
        "training": {
            "lr_scheduler": {"type": "multistep", "milestones": [3, 5], "gamma": 0.2},
            "loss": {"type": "multi_task", "segmentation_weight": 0.2, "triage_loss": {"type": "bce", "pos_weight": 2}},
            "gradient_clipping": True,
            "optimizer": "adam",
        },
        "device": {"seed": 7, "cudnn_deterministic": True},
        "logging": {"tensorboard": True, "wandb": {"enabled": True}, "log_interval": 5},
    }
    found = imported("minimal", more)
    config, options = resolved(found)
    assert found.unplaced == {}
    assert (options.sampling.positive_fraction, options.sampling.patches_per_volume) == (0.7, 3)
    assert options.model.gradient_checkpointing and options.model.deep_supervision
    assert (config.scheduler.name, config.scheduler.milestones, config.scheduler.factor) == ("multistep", [3, 5], 0.2)
    assert (options.loss.weights["segmentation"], options.loss.triage_pos_weight) == (0.2, 2)
    assert (config.optimization.clip_grad_norm, config.optimization.optimizer) == (1.0, "adam")
    assert (config.run.seed, config.computational.deterministic) == (7, True)
    assert [config.options(name).gradient_interval for name in ("tensorboard", "wandb")] == [5, 5]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"training": {"epoch": 3}}, "training.epoch"),
        ({"training": {"loss": {"type": "focal", "epsilon": 1}}}, "training.loss.epsilon"),
        ({"augmentation": {"random_flip": {"chance": 0.5}}}, "augmentation.random_flip.chance"),
        ({"model": {"in_channels": 2}}, "model.in_channels"),
        ({"validation": {"metrics": ["froc_score", "hausdorff"]}}, "validation.metrics"),
        ({"server": {"port": 8000}}, "server.port"),
        ({"training": {"optimizer": {"type": "sgd", "betas": [0.9, 0.99]}}}, "training.optimizer.betas"),
    ],
)
def test_what_has_no_place_is_told(change: dict[str, Any], key: str) -> None:
    assert list(imported("minimal", change).unplaced) == [key]


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "transformer"}},
        {"model": {"type": "custom"}},
        {"training": {"loss": {"type": "tversky"}}},
        {"training": {"optimizer": {"type": "lion"}}},
        {"training": {"early_stopping": {"enabled": True, "patience": 3, "monitor": "val_auc"}}},
        {"training": {"progressive": {"stages": [{"patch_size": [8, 8, 8]}]}}},
        {"device": {"parallel_mode": "fsdp"}},
    ],
)
def test_what_means_nothing_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        imported("minimal", change)


@pytest.mark.parametrize("name", ["minimal", "complete", *FRAGMENTS])
def test_the_command_writes_what_config_check_accepts(name: str, tmp_path: Path) -> None:
    out = tmp_path / "run.toml"
    onto = [] if name in ("minimal", "complete") else ["--onto", str(GUIDE / "minimal.yaml")]
    done = CliRunner().invoke(
        cli, ["config", "import", str(GUIDE / f"{name}.yaml"), "--strict", *onto, "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert tomli.loads(out.read_text())["run"]["plugins"][0] == "pivot"
    checked = CliRunner().invoke(cli, ["config", "check", "--config", str(out)], catch_exceptions=False)
    assert checked.exit_code == 0 and checked.output.startswith("ok: pivot")


def test_the_command_names_file_line_and_key(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("training:\n  epochs: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml:3: not valid YAML"):
        read_yaml(broken)
    broken.write_text(yaml.safe_dump({"training": {"speed": 3}}))
    done = CliRunner().invoke(cli, ["config", "import", str(broken)])
    assert done.exit_code == 0 and "training.speed: no such key" in done.output
    done = CliRunner().invoke(cli, ["config", "import", str(broken), "--strict"])
    assert isinstance(done.exception, ConfigError) and "training.speed" in str(done.exception)
