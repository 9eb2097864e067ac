"""Brain images of BIDS and CAPS trees: classification, regression, segmentation, reconstruction, 2-D and 3-D."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medtrain import hookimpl

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from medtrain import Data, Run, RunConfig, Section
    from medtrain.protocols import Metric

    from medtrain_plugins.brain.data.transforms import BatchAugmentation
    from medtrain_plugins.brain.options import BrainOptions

# Modules that older run directories name, and where they are now.
MOVED = {
    "medtrain_plugins.brain.combine": "medtrain_plugins.brain.data.combined",
    "medtrain_plugins.brain.dataset": "medtrain_plugins.brain.data.dataset",
    "medtrain_plugins.brain.extraction": "medtrain_plugins.brain.data.extraction",
    "medtrain_plugins.brain.extraction:ExtractionOptions": "medtrain_plugins.brain.options:ExtractionOptions",
    "medtrain_plugins.brain.inference": "medtrain_plugins.brain.model.inference",
    "medtrain_plugins.brain.losses": "medtrain_plugins.brain.model.losses",
    "medtrain_plugins.brain.metrics": "medtrain_plugins.brain.evaluation.metrics",
    "medtrain_plugins.brain.model": "medtrain_plugins.brain.model.model",
    "medtrain_plugins.brain.networks": "medtrain_plugins.brain.model.networks",
    "medtrain_plugins.brain.transforms": "medtrain_plugins.brain.data.transforms",
}


class Brain:
    """Brain images of BIDS and CAPS trees: classification, regression, segmentation, reconstruction, 2-D and 3-D."""

    name = "brain"

    @hookimpl
    def plugin_options(self) -> type[BrainOptions]:
        """Cohort, network, loss, inference."""
        from medtrain_plugins.brain.options import BrainOptions

        return BrainOptions

    @hookimpl
    def build_data(self, config: RunConfig) -> Data:
        """The images of a BIDS or CAPS tree, which the core splits; options that depend on the images are filled in."""
        from medtrain_plugins.brain.build_data import open_cohort
        from medtrain_plugins.brain.tasks import resolve_options

        options = config.options(self.name)
        data = open_cohort(options, config)
        resolve_options(options, data.whole)
        return data

    @hookimpl
    def build_model(self, config: RunConfig) -> torch.nn.Module:
        """The network by name, for the shape and the classes of the images."""
        from medtrain_plugins.brain.tasks import build_model

        return build_model(config.options(self.name))

    @hookimpl
    def build_loss(self, config: RunConfig) -> torch.nn.Module:
        """The loss of the task."""
        from medtrain_plugins.brain.tasks import build_loss

        return build_loss(config.options(self.name))

    @hookimpl
    def build_metrics(self, config: RunConfig, data: Data) -> list[Metric]:
        """The metrics of the task, by image.

        The training group is known here, before model and loss are built. Options that depend on labels come from it
        alone.
        """
        from medtrain_plugins.brain.tasks import build_metrics, infer_from_data, resolve_options

        options = config.options(self.name)
        if data.train is not None:
            resolve_options(options, data.train)
            infer_from_data(options, data.train)
        return build_metrics(options)

    @hookimpl
    def build_augmentation(self, config: RunConfig) -> BatchAugmentation | None:
        """Random MONAI transforms of training images; a mask is transformed like its image."""
        options = config.options(self.name)
        if not options.augmentations:
            return None
        from medtrain_plugins.brain.data.transforms import BatchAugmentation

        return BatchAugmentation(options.augmentations)

    @hookimpl
    def predict(self, run: Run, sample: Any) -> pd.DataFrame:
        """One row per image of a file or BIDS tree; segmentations and reconstructions are written beside the run."""
        from medtrain_plugins.brain.model.predict import predict_images

        return predict_images(run, sample, run.config.options(self.name))

    @hookimpl
    def report_sections(self, run: Run) -> list[Section]:
        """Curves, confusion matrix and calibration; scatter plots; best and worst images."""
        from medtrain_plugins.brain.evaluation.plots import brain_sections

        return brain_sections(run, run.config.options(self.name))
