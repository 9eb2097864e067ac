"""PIVOT: lung nodules in chest CT, found, measured and triaged by a 3-D detector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medtrain import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pandas as pd
    import torch
    from medtrain import Data, Run, RunConfig, Section
    from medtrain.protocols import Check, Evaluation

    from medtrain_plugins.nodule.evaluation.metrics import DetectionMetric
    from medtrain_plugins.nodule.inference.predict import DetectedScan
    from medtrain_plugins.nodule.model.detector_loss import NoduleLoss
    from medtrain_plugins.nodule.options import PivotOptions

# Modules that older run directories name, and where they are now.
MOVED = {
    "medtrain_plugins.nodule.augmentation": "medtrain_plugins.nodule.options",
    "medtrain_plugins.nodule.dataset": "medtrain_plugins.nodule.data.dataset",
    "medtrain_plugins.nodule.detection": "medtrain_plugins.nodule.evaluation.metrics",
    "medtrain_plugins.nodule.detector": "medtrain_plugins.nodule.model.detector",
    "medtrain_plugins.nodule.heads": "medtrain_plugins.nodule.model.heads",
    "medtrain_plugins.nodule.intensity": "medtrain_plugins.nodule.scans.intensity",
    "medtrain_plugins.nodule.losses": "medtrain_plugins.nodule.model.losses",
    "medtrain_plugins.nodule.manifest": "medtrain_plugins.nodule.scans.manifest",
    "medtrain_plugins.nodule.mining": "medtrain_plugins.nodule.model.mining",
    "medtrain_plugins.nodule.multi_task": "medtrain_plugins.nodule.model.detector_loss",
    "medtrain_plugins.nodule.networks": "medtrain_plugins.nodule.model.networks",
    "medtrain_plugins.nodule.patches": "medtrain_plugins.nodule.data.sampling",
}


class Pivot:
    """PIVOT: lung nodules in chest CT, found, measured and triaged by a 3-D detector."""

    name = "pivot"

    @hookimpl
    def plugin_options(self) -> type[PivotOptions]:
        """Data, patches, network, losses, augmentation, inference, evaluation."""
        from medtrain_plugins.nodule.options import PivotOptions

        return PivotOptions

    @hookimpl
    def build_data(self, config: RunConfig) -> Data:
        """Training patches of prepared scans, and whole scans for evaluation, for the current stage."""
        from medtrain_plugins.nodule.data.groups import build_data

        return build_data(config, config.options(self.name))

    @hookimpl
    def build_model(self, config: RunConfig) -> torch.nn.Module:
        """The detector: a network by name, with dense heads."""
        from medtrain_plugins.nodule.model.from_options import build_model

        return build_model(config.options(self.name))

    @hookimpl
    def build_loss(self, config: RunConfig, model: torch.nn.Module) -> NoduleLoss:
        """One term per head, weighted."""
        from medtrain_plugins.nodule.model.from_options import build_loss

        return build_loss(config.options(self.name), model)

    @hookimpl
    def build_metrics(self, config: RunConfig, data: Data) -> list[DetectionMetric]:
        """CPM, sensitivities, centres, sizes and triage on whole scans."""
        from medtrain_plugins.nodule.evaluation.metrics import metrics_of

        return metrics_of(config.options(self.name))

    @hookimpl
    def evaluate(self, run: Run, loader: Iterable[dict[str, Any]]) -> Evaluation:
        """Detection in whole scans, and the loss on fixed patches."""
        from medtrain_plugins.nodule.evaluation.whole_scans import evaluate_scans
        from medtrain_plugins.nodule.model.from_options import untrained_model

        options = run.config.options(self.name)
        # Only after training: during training the first epochs show the same.
        compared = options.evaluation.untrained and run.optimizer is None
        untrained = untrained_model(run.config, options, run.device) if compared else None
        return evaluate_scans(run, loader, options, untrained)

    @hookimpl
    def on_epoch_start(self, run: Run) -> None:
        """Sets the scheduled loss weights of the epoch."""
        run.loss.set_epoch(run.epoch)

    @hookimpl
    def predict(self, run: Run, sample: Any) -> pd.DataFrame | DetectedScan:
        """One row per candidate in a scan: a DICOM folder, a NIfTI, MetaImage or prepared file."""
        from medtrain_plugins.nodule.inference.predict import predict

        return predict(run, sample, run.config.options(self.name))

    @hookimpl
    def export(self, run: Run, format: str, path: Path, check: Check | None) -> dict[str, Any] | None:
        """The detector as ONNX."""
        from medtrain_plugins.nodule.inference.export import export_detector

        return export_detector(run, run.config.options(self.name), format, path, check)

    @hookimpl
    def report_sections(self, run: Run) -> list[Section]:
        """FROC, strata, centres and sizes, malignancy, and a comparison with the untrained network."""
        from medtrain_plugins.nodule.evaluation.report import detection_sections

        return detection_sections(run, run.config.options(self.name))
