"""LMV-Net: breast-cancer risk from the CC and MLO views of two consecutive exams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medtrain import hookimpl

if TYPE_CHECKING:
    import pandas as pd
    from medtrain import Data, Run, RunConfig, Section

    from medtrain_plugins.mammography.augmentation import ExamAugmentation
    from medtrain_plugins.mammography.losses import MultiHeadBCE
    from medtrain_plugins.mammography.metrics import RiskMetrics

    from .model import LMVNet
    from .options import LMVNetOptions

NAME = "lmv_net"


@hookimpl
def plugin_options() -> type[LMVNetOptions]:
    """The cohort options of the family and the model's own."""
    from .options import LMVNetOptions

    return LMVNetOptions


@hookimpl
def build_data(config: RunConfig) -> Data:
    """Breasts with CC and MLO in two consecutive exams, by group."""
    from medtrain_plugins.mammography.data import build_data
    from medtrain_plugins.mammography.exams import lmv_pairs

    options = config.options(NAME)
    if not config.fresh:
        _require_pretrained(options)
    return build_data(config, options, lmv_pairs)


@hookimpl
def build_model(config: RunConfig) -> LMVNet:
    """LMV-Net with its pretrained parts, or without when weights follow from elsewhere."""
    from .model import LMVNet

    options = config.options(NAME)
    model = LMVNet(
        registration="none" if options.registration == "none" else "mammo_reg_net",
        compat=options.compat,
        num_blocks=options.num_blocks,
        num_heads=options.num_heads,
        dropout=options.dropout,
        drop_path=options.drop_path,
        ffn_ratio=options.ffn_ratio,
        align_prior=options.align_prior,
        finetune_encoder=options.finetune_encoder,
        input_norm=options.encoder_norm,
    )
    if not config.fresh:
        _load_pretrained(model, options)
    return model


@hookimpl
def build_loss(config: RunConfig) -> MultiHeadBCE:
    """Masked binary cross-entropy of the three heads."""
    from medtrain_plugins.mammography.losses import MultiHeadBCE

    from .model import LMVNet

    return MultiHeadBCE(LMVNet.risk_heads, LMVNet.head_weights)


@hookimpl
def build_metrics(config: RunConfig, data: Data) -> list[RiskMetrics]:
    """C-index and yearly AUCs of the fused head."""
    from medtrain_plugins.mammography.data import build_metrics

    from .model import LMVNet

    return build_metrics(data, config.options(NAME), LMVNet.primary_risk)


@hookimpl
def build_augmentation(config: RunConfig) -> ExamAugmentation | None:
    """One draw per sample, shared by its four images."""
    if not config.options(NAME).augmentation:
        return None
    from medtrain_plugins.mammography.augmentation import ExamAugmentation

    from .model import IMAGES

    return ExamAugmentation(IMAGES)


@hookimpl
def predict(run: Run, sample: Any) -> pd.DataFrame:
    """Risks within 1 to 5 years for a folder of images named as in EMBED, or for a cohort (a table, its folder)."""
    from medtrain_plugins.mammography.predict import predict_pairs

    from .model import LMVNet

    return predict_pairs(run, sample, run.config.options(NAME), LMVNet.primary_risk)


@hookimpl
def report_sections(run: Run) -> list[Section]:
    """ROC curves, calibration, risk groups and strata."""
    from medtrain_plugins.mammography.plots import risk_sections

    return risk_sections(run.evaluation) if run.evaluation else []


def _require_pretrained(options: LMVNetOptions) -> None:
    from medtrain.errors import ConfigError

    missing = []
    if not options.registration:
        missing.append(
            "plugins.lmv_net.registration: weights of a trained MammoRegNet (a file or a run directory), "
            "or 'none' to leave the prior exam unaligned"
        )
    if not options.encoder_weights:
        missing.append(
            "plugins.lmv_net.encoder_weights: a Mirai snapshot, state dict or safetensors file, "
            "or 'none' to train the encoder from scratch"
        )
    if missing:
        raise ConfigError("LMV-Net needs pretrained parts it was not given:\n  - " + "\n  - ".join(missing))


def _load_pretrained(model: LMVNet, options: LMVNetOptions) -> None:
    from medtrain.build import weights_file

    from medtrain_plugins.mammography.snapshots import load_backbone, load_registration

    from .model import ENCODER, REGISTRATION

    _require_pretrained(options)
    if options.registration != "none":
        path = weights_file(options.registration, "plugins.lmv_net.registration")
        model.get_submodule(REGISTRATION).load_state_dict(load_registration(path))
    if options.encoder_weights != "none":
        path = weights_file(options.encoder_weights, "plugins.lmv_net.encoder_weights")
        model.get_submodule(ENCODER).load_state_dict(load_backbone(path))
