"""The hooks that the plugins of the risk models share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from medtrain import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd
    from medtrain import Data, Run, RunConfig, Section
    from medtrain.protocols import Weights

    from medtrain_plugins.mammography.cohort.augmentation import ExamAugmentation
    from medtrain_plugins.mammography.cohort.samples import Samples
    from medtrain_plugins.mammography.evaluation.metrics import RiskMetrics
    from medtrain_plugins.mammography.model.risk_model import BaseRiskModel
    from medtrain_plugins.mammography.options import RiskOptions

    Model = TypeVar("Model", bound=BaseRiskModel)


class RiskModelPlugin(ABC):
    """One risk model as a plugin: a subclass has its samples and its network, the rest is shared by the family.

    name: of the plugin, also of its options. flip_p: probability of mirroring a training sample.
    """

    name: ClassVar[str]
    flip_p: ClassVar[float] = 0.0

    @abstractmethod
    def model_class(self) -> type[BaseRiskModel]:
        """The network's class, imported on call."""

    @abstractmethod
    def samples(self, options: Any) -> Samples:
        """The samples it makes from a cohort."""

    @hookimpl
    def build_data(self, config: RunConfig) -> Data:
        """The model's samples of the cohort, by group."""
        from medtrain_plugins.mammography.build_data import build_data

        options = config.options(self.name)
        if not config.fresh:
            self._require_pretrained(options)
        return build_data(config, options, self.samples(options))

    @hookimpl
    def build_loss(self, config: RunConfig, model: BaseRiskModel) -> Callable[..., Any]:
        """Masked binary cross-entropy of the model's heads."""
        from medtrain_plugins.mammography.model.losses import MultiHeadBCE

        return MultiHeadBCE(model.risk_heads, model.head_weights)

    @hookimpl
    def build_metrics(self, config: RunConfig, data: Data) -> list[RiskMetrics]:
        """C-index and yearly AUCs of the model's score."""
        from medtrain_plugins.mammography.build_data import build_metrics

        return build_metrics(data, config.options(self.name), self.model_class().primary_risk)

    @hookimpl
    def build_augmentation(self, config: RunConfig) -> ExamAugmentation | None:
        """One draw per sample, shared by all its images."""
        options = config.options(self.name)
        if not options.augmentation:
            return None
        from medtrain_plugins.mammography.cohort.augmentation import ExamAugmentation

        return ExamAugmentation(tuple(self.samples(options).images), flip_p=self.flip_p)

    @hookimpl
    def predict(self, run: Run, sample: Any) -> pd.DataFrame:
        """Risks within 1 to 5 years for a folder of images named as in EMBED, or for a cohort (a table, its folder)."""
        from medtrain_plugins.mammography.model.predict import predict_risks

        options = run.config.options(self.name)
        return predict_risks(run, sample, options, self.samples(options), self.model_class().primary_risk)

    @hookimpl
    def import_weights(self, config: RunConfig, paths: list[Path]) -> Weights:
        """The model's weights from checkpoints of the published benchmark and official Mirai snapshots."""
        from medtrain_plugins.mammography.weights.import_weights import import_risk_weights

        return import_risk_weights(paths, self.model_class().encoder_name)

    @hookimpl
    def report_sections(self, run: Run) -> list[Section]:
        """ROC curves, calibration, risk groups and strata."""
        from medtrain_plugins.mammography.evaluation.plots import risk_sections

        return risk_sections(run.evaluation) if run.evaluation else []

    def with_pretrained(self, model: Model, config: RunConfig) -> Model:
        """The model with the pretrained parts of its options, unless its weights are loaded later."""
        options = config.options(self.name)
        if config.fresh:
            return model
        from medtrain_plugins.mammography.weights.snapshots import load_registration

        self._require_pretrained(options)
        if (path := self._part(options, "registration")) is not None and model.registration_name:
            model.get_submodule(model.registration_name).load_state_dict(load_registration(path))
        if (path := self._part(options, "encoder_weights")) is not None:
            model.get_submodule(model.encoder_name).load_state_dict(self.load_encoder(path))
        return model

    def load_encoder(self, path: Path) -> dict[str, Any]:
        """The encoder's tensors from a file."""
        from medtrain_plugins.mammography.weights.snapshots import load_backbone

        return load_backbone(path)

    def _part(self, options: RiskOptions, key: str) -> Path | None:
        """The file of a pretrained part; None if the option is 'none', or if the model has no such part."""
        from medtrain.weights import weights_file

        where = getattr(options, key, "none")
        return None if where == "none" else weights_file(where, f"plugins.{self.name}.{key}")

    def _require_pretrained(self, options: RiskOptions) -> None:
        from medtrain.errors import ConfigError

        missing = [f"plugins.{self.name}.{key}: {PARTS[key]}" for key in PARTS if getattr(options, key, "none") == ""]
        if missing:
            raise ConfigError(f"{self.name} needs pretrained parts it was not given:\n  - " + "\n  - ".join(missing))


PARTS = {
    "registration": "weights of a trained MammoRegNet (a file or a run directory), "
    "or 'none' to leave the prior exam unaligned",
    "encoder_weights": "a Mirai snapshot, state dict or safetensors file, or 'none' to train the encoder from scratch",
}
