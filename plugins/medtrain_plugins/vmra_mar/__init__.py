"""VMRA-MaR: breast-cancer risk from the four views of a woman's last visits."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from medtrain import hookimpl

from medtrain_plugins.mammography.plugin import RiskModelPlugin

if TYPE_CHECKING:
    from medtrain import RunConfig

    from medtrain_plugins.mammography.cohort.samples import Samples
    from medtrain_plugins.vmra_mar.model import VMRAMaR
    from medtrain_plugins.vmra_mar.options import VMRAMaROptions

log = logging.getLogger("medtrain")


class VMRAMaRPlugin(RiskModelPlugin):
    """VMRA-MaR: breast-cancer risk from the four views of a woman's last visits."""

    name = "vmra_mar"

    @hookimpl
    def plugin_options(self) -> type[VMRAMaROptions]:
        """The options of the family and the model's own."""
        from medtrain_plugins.vmra_mar.options import VMRAMaROptions

        return VMRAMaROptions

    def samples(self, options: VMRAMaROptions) -> Samples:
        """Exams with all four views and the exams before them."""
        from medtrain_plugins.mammography.cohort.samples import exam_visits

        return exam_visits(options.max_visits)

    def model_class(self) -> type[VMRAMaR]:
        """The network."""
        from medtrain_plugins.vmra_mar.model import VMRAMaR

        return VMRAMaR

    @hookimpl
    def build_model(self, config: RunConfig) -> VMRAMaR:
        """VMRA-MaR with a pretrained encoder, unless its weights are loaded later."""
        options: VMRAMaROptions = config.options(self.name)
        if not config.fresh and options.encoder_weights == "none" and options.freeze_image_encoder:
            log.warning(
                "plugins.vmra_mar: the encoder has no pretrained weights and is frozen, so it stays random; "
                "set freeze_image_encoder = false to train it"
            )
        model = self.model_class()(
            compat=options.compat,
            freeze_image_encoder=options.freeze_image_encoder,
            input_norm=options.encoder_norm,
            orientation=options.image_orientation,
            embed_dim=options.embed_dim,
            depth=options.depth,
            drop_path=options.drop_path,
            asymmetry=options.asymmetry,
            latent_size=options.latent_size,
            asymmetry_mean=options.asymmetry_mean,
            asymmetry_std=options.asymmetry_std,
            threshold_ratio=options.threshold_ratio,
            persistent_weight=options.persistent_weight,
        )
        return self.with_pretrained(model, config)
