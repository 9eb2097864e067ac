"""Mirai: breast-cancer risk from the four views of one exam."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medtrain import hookimpl

from medtrain_plugins.mammography.plugin import RiskModelPlugin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medtrain import RunConfig
    from medtrain.protocols import Weights

    from medtrain_plugins.mammography.cohort.samples import Samples
    from medtrain_plugins.mammography.model.risk_model import BaseRiskModel
    from medtrain_plugins.mirai.model import MiraiModel
    from medtrain_plugins.mirai.options import MiraiOptions


class Mirai(RiskModelPlugin):
    """Mirai: breast-cancer risk from the four views of one exam."""

    name = "mirai"

    @hookimpl
    def plugin_options(self) -> type[MiraiOptions]:
        """The options of the family and the model's own."""
        from medtrain_plugins.mirai.options import MiraiOptions

        return MiraiOptions

    def samples(self, options: MiraiOptions) -> Samples:
        """Exams with all four views, or with `min_views` of them."""
        from medtrain_plugins.mirai.samples import exam_samples

        return exam_samples(options.compat, options.min_views, options.risk_factors)

    def model_class(self) -> type[MiraiModel]:
        from medtrain_plugins.mirai.model import MiraiModel

        return MiraiModel

    @hookimpl
    def build_model(self, config: RunConfig) -> MiraiModel:
        """Mirai with its pretrained parts, unless its weights are loaded later; calibrated on request."""
        from medtrain_plugins.mirai.calibration import Calibration
        from medtrain_plugins.mirai.model import MiraiModel

        options = config.options(self.name)
        model = MiraiModel(
            hidden_dim=options.hidden_dim,
            num_layers=options.num_layers,
            num_heads=options.num_heads,
            dropout=options.dropout,
            pool=options.pool,
            mask_prob=options.mask_prob,
            risk_factors=options.risk_factors,
            compat=options.compat,
            finetune_encoder=options.finetune_encoder,
            input_norm=options.encoder_norm,
            calibration=Calibration.read(options.calibration) if options.calibration else None,
        )
        if options.transformer_weights and not config.fresh:
            from medtrain.weights import weights_file

            from medtrain_plugins.mirai.weights import load_transformer

            path = weights_file(options.transformer_weights, "plugins.mirai.transformer_weights")
            load_transformer(path, model.transformer)
        return self.with_pretrained(model, config)

    @hookimpl
    def import_weights(self, config: RunConfig, paths: list[Path]) -> Weights:
        """Mirai's weights from checkpoints of the published benchmark and official snapshots, risk factors included."""
        from medtrain_plugins.mammography.weights.import_weights import import_risk_weights
        from medtrain_plugins.mirai.risk_factors import RISK_FACTORS

        return import_risk_weights(paths, self.model_class().encoder_name, [factor.name for factor in RISK_FACTORS])

    @hookimpl
    def build_loss(self, config: RunConfig, model: BaseRiskModel) -> Callable[..., Any]:
        """Masked binary cross-entropy of the risks; with risk factors also the cross-entropy of the known ones."""
        from medtrain_plugins.mammography.model.losses import MultiHeadBCE

        options = config.options(self.name)
        loss = MultiHeadBCE(model.risk_heads, model.head_weights)
        if not options.risk_factors:
            return loss
        from medtrain_plugins.mirai.losses import RiskAndFactorsLoss

        return RiskAndFactorsLoss(loss, options.risk_factor_weight)
