"""OA-BreaCR: time to breast cancer from one view and its previous exam, by ordinal learning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtrain import hookimpl

from medtrain_plugins.mammography.plugin import RiskModelPlugin

if TYPE_CHECKING:
    from medtrain import RunConfig

    from medtrain_plugins.mammography.cohort.samples import Samples
    from medtrain_plugins.mammography.model.risk_model import BaseRiskModel
    from medtrain_plugins.mammography.options import RiskOptions
    from medtrain_plugins.oa_breacr.losses import OABreaCRLoss
    from medtrain_plugins.oa_breacr.model import OABreaCR
    from medtrain_plugins.oa_breacr.options import OABreaCROptions


class OABreaCRPlugin(RiskModelPlugin):
    """OA-BreaCR: time to breast cancer from one view and its previous exam, by ordinal learning."""

    name = "oa_breacr"

    @hookimpl
    def plugin_options(self) -> type[OABreaCROptions]:
        """The options of the family and the model's own."""
        from medtrain_plugins.oa_breacr.options import OABreaCROptions

        return OABreaCROptions

    def samples(self, options: OABreaCROptions) -> Samples:
        """One view of a breast and the same view of its previous exam."""
        from medtrain_plugins.mammography.cohort.samples import VIEW_PAIRS

        return VIEW_PAIRS

    def model_class(self) -> type[OABreaCR]:
        from medtrain_plugins.oa_breacr.model import OABreaCR

        return OABreaCR

    @hookimpl
    def build_model(self, config: RunConfig) -> OABreaCR:
        """OA-BreaCR with its pretrained encoder, unless its weights are loaded later."""
        from medtrain_plugins.oa_breacr.encoder import fetch_imagenet, load_encoder
        from medtrain_plugins.oa_breacr.model import OABreaCR

        options: OABreaCROptions = config.options(self.name)
        model = OABreaCR(
            arch=options.arch,
            img_size=options.pool_size,
            use_poe=options.use_poe,
            use_sto=options.use_sto,
            max_t=options.max_t,
            registration_weight=options.registration_weight,
            input_norm=options.encoder_norm,
        )
        if config.fresh:
            return model
        self._require_pretrained(options)
        if options.encoder_weights == "imagenet":
            model.get_submodule(model.encoder_name).load_state_dict(fetch_imagenet(options.arch))
        elif (path := self._part(options, "encoder_weights")) is not None:
            model.get_submodule(model.encoder_name).load_state_dict(load_encoder(path, options.arch))
        return model

    def _require_pretrained(self, options: RiskOptions) -> None:
        from medtrain.errors import ConfigError

        if not options.encoder_weights:
            raise ConfigError(
                "plugins.oa_breacr.encoder_weights: say what the encoder starts from: 'imagenet' (torchvision "
                "downloads the weights), a file with weights of the same network, or 'none' to train it from scratch"
            )

    @hookimpl
    def build_loss(self, config: RunConfig, model: BaseRiskModel) -> OABreaCRLoss:
        """Cross-entropy and mean-variance of four heads, and the order of the embeddings."""
        from medtrain_plugins.oa_breacr.losses import OABreaCRLoss

        options: OABreaCROptions = config.options(self.name)
        return OABreaCRLoss(
            compat=options.compat,
            use_poe=options.use_poe,
            distance=options.distance,
            alpha=options.alpha,
            beta=options.beta,
            margin=options.margin,
            bce_weight=options.bce_weight,
            mean_weight=options.mean_weight,
            variance_weight=options.variance_weight,
            class_weights=options.class_weights,
        )
