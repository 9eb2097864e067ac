"""ImgFeatAlign: breast-cancer risk from one view of two consecutive exams, the prior aligned in feature space."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from medtrain import hookimpl

from medtrain_plugins.mammography.plugin import RiskModelPlugin

if TYPE_CHECKING:
    from medtrain import RunConfig

    from medtrain_plugins.imgfeatalign.model import ImgFeatAlign
    from medtrain_plugins.imgfeatalign.options import ImgFeatAlignOptions
    from medtrain_plugins.mammography.cohort.samples import Samples
    from medtrain_plugins.mammography.model.losses import MultiHeadBCE
    from medtrain_plugins.mammography.model.risk_model import BaseRiskModel

log = logging.getLogger("medtrain")


class ImgFeatAlignPlugin(RiskModelPlugin):
    """ImgFeatAlign: breast-cancer risk from one view of two consecutive exams, the prior aligned in feature space."""

    name = "imgfeatalign"

    @hookimpl
    def plugin_options(self) -> type[ImgFeatAlignOptions]:
        """The options of the family and the model's own."""
        from medtrain_plugins.imgfeatalign.options import ImgFeatAlignOptions

        return ImgFeatAlignOptions

    def samples(self, options: ImgFeatAlignOptions) -> Samples:
        from medtrain_plugins.mammography.cohort.samples import VIEW_PAIRS

        return VIEW_PAIRS

    def model_class(self) -> type[ImgFeatAlign]:
        from medtrain_plugins.imgfeatalign.model import ImgFeatAlign

        return ImgFeatAlign

    @hookimpl
    def build_model(self, config: RunConfig) -> ImgFeatAlign:
        """ImgFeatAlign with its pretrained parts, unless its weights are loaded later."""
        from medtrain_plugins.imgfeatalign.model import ImgFeatAlign

        options: ImgFeatAlignOptions = config.options(self.name)
        if not config.fresh and options.encoder_weights == "none" and not options.finetune_encoder:
            log.warning(
                "plugins.imgfeatalign: the encoder has no pretrained weights and is frozen, so it stays random; "
                "set finetune_encoder = true to train it"
            )
        model = ImgFeatAlign(
            registration="none" if options.registration == "none" else "mammo_reg_net",
            compat=options.compat,
            num_heads=options.num_heads,
            dropout=options.dropout,
            ffn_ratio=options.ffn_ratio,
            finetune_encoder=options.finetune_encoder,
            input_norm=options.encoder_norm,
        )
        return self.with_pretrained(model, config)

    @hookimpl
    def build_loss(self, config: RunConfig, model: BaseRiskModel) -> MultiHeadBCE:
        """Masked binary cross-entropy of the three heads; the prior exam's head learns from the prior exam's labels."""
        from medtrain_plugins.mammography.model.losses import MultiHeadBCE

        return MultiHeadBCE(model.risk_heads, model.head_weights, {"pri": "y_mask_prior"})
