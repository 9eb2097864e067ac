"""LMV-Net: breast-cancer risk from the CC and MLO views of two consecutive exams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtrain import hookimpl

from medtrain_plugins.mammography.plugin import RiskModelPlugin

if TYPE_CHECKING:
    from medtrain import RunConfig

    from medtrain_plugins.lmv_net.model import LMVNet
    from medtrain_plugins.lmv_net.options import LMVNetOptions
    from medtrain_plugins.mammography.cohort.samples import Samples


class LMVNetPlugin(RiskModelPlugin):
    """LMV-Net: breast-cancer risk from the CC and MLO views of two consecutive exams."""

    name = "lmv_net"
    flip_p = 0.5

    @hookimpl
    def plugin_options(self) -> type[LMVNetOptions]:
        """The options of the family and the model's own."""
        from medtrain_plugins.lmv_net.options import LMVNetOptions

        return LMVNetOptions

    def samples(self, options: LMVNetOptions) -> Samples:
        """Breasts with CC and MLO in two consecutive exams."""
        from medtrain_plugins.mammography.cohort.samples import BREAST_PAIRS

        return BREAST_PAIRS

    def model_class(self) -> type[LMVNet]:
        from medtrain_plugins.lmv_net.model import LMVNet

        return LMVNet

    @hookimpl
    def build_model(self, config: RunConfig) -> LMVNet:
        """LMV-Net with its pretrained parts, unless its weights are loaded later."""
        from medtrain_plugins.lmv_net.model import LMVNet

        options = config.options(self.name)
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
        return self.with_pretrained(model, config)
