"""MammoRegNet: trains the network that registers a prior mammogram to the current one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medtrain import hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch
    from medtrain import Data, Run, RunConfig, Section
    from medtrain.protocols import Weights

    from medtrain_plugins.mammo_reg_net.losses import RegistrationLoss
    from medtrain_plugins.mammo_reg_net.metrics import PairMean
    from medtrain_plugins.mammo_reg_net.model import PairRegistration
    from medtrain_plugins.mammo_reg_net.options import MammoRegNetOptions
    from medtrain_plugins.mammography.cohort.augmentation import ExamAugmentation


class MammoRegNetPlugin:
    """MammoRegNet: trains the network that registers a prior mammogram to the current one."""

    name = "mammo_reg_net"

    @hookimpl
    def plugin_options(self) -> type[MammoRegNetOptions]:
        """The cohort, its images, and the network's input."""
        from medtrain_plugins.mammo_reg_net.options import MammoRegNetOptions

        return MammoRegNetOptions

    @hookimpl
    def build_data(self, config: RunConfig) -> Data:
        """Images with the same view of the breast's previous exam, by group."""
        from medtrain_plugins.mammography.build_data import build_data
        from medtrain_plugins.mammography.cohort.samples import VIEW_PAIRS

        return build_data(config, config.options(self.name), VIEW_PAIRS)

    @hookimpl
    def build_model(self, config: RunConfig) -> PairRegistration:
        """MammoRegNet, freshly initialised; the risk models use its weights as `registration`."""
        from medtrain_plugins.mammo_reg_net.model import PairRegistration
        from medtrain_plugins.mammography.model.registration import MammoRegNet

        return PairRegistration(MammoRegNet(), config.options(self.name).pixel_scale)

    @hookimpl
    def build_loss(self, config: RunConfig) -> RegistrationLoss:
        """Similarity after both steps, smoothness and folding."""
        from medtrain_plugins.mammo_reg_net.losses import RegistrationLoss

        options = config.options(self.name)
        return RegistrationLoss(options.regularisation, options.compat)

    @hookimpl
    def build_optimizer(self, config: RunConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Adam with the weight decay in the gradient, as published."""
        import torch
        from medtrain import parameter_groups

        settings = config.optimization
        return torch.optim.Adam(parameter_groups(settings, model), lr=settings.learning_rate)

    @hookimpl
    def build_metrics(self) -> list[PairMean]:
        """Correlation after and before, and folding."""
        from medtrain_plugins.mammo_reg_net.metrics import registration_metrics

        return registration_metrics()

    @hookimpl
    def build_augmentation(self, config: RunConfig) -> ExamAugmentation | None:
        """None by default; else one draw per pair, shared by both images."""
        if not config.options(self.name).augmentation:
            return None
        from medtrain_plugins.mammo_reg_net.model import FIXED, MOVING
        from medtrain_plugins.mammography.cohort.augmentation import ExamAugmentation

        return ExamAugmentation((FIXED, MOVING), flip_p=0.0)

    @hookimpl
    def predict(self, run: Run, sample: Any) -> pd.DataFrame:
        """Registers a folder of images named as in EMBED, or a cohort (a table, its folder); one row per pair."""
        from medtrain_plugins.mammo_reg_net.report import predict_pairs

        return predict_pairs(run, sample, run.config.options(self.name))

    @hookimpl
    def import_weights(self, config: RunConfig, paths: list[Path]) -> Weights:
        """MammoRegNet's weights from checkpoints of the published benchmark."""
        from medtrain_plugins.mammography.weights.import_weights import import_risk_weights

        return import_risk_weights(paths)

    @hookimpl
    def report_sections(self, run: Run) -> list[Section]:
        """The gain in correlation, and figures of registered pairs."""
        from medtrain_plugins.mammo_reg_net.report import registration_sections

        return registration_sections(run, run.config.options(self.name))
