"""KArSL: word-level Arabic signs from the landmarks of face, hands and body, by a spatial-temporal transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medtrain import hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch
    from medtrain import Data, Run, RunConfig, Section
    from medtrain.protocols import Check, Weights

    from medtrain_plugins.sign.data.augmentation import ClipAugmentation
    from medtrain_plugins.sign.evaluation.metrics import SignMetrics
    from medtrain_plugins.sign.model.loss import ClassLoss
    from medtrain_plugins.sign.options import KArSLOptions

# Modules that older run directories name, and where they are now.
MOVED = {
    "medtrain_plugins.sign.augmentation": "medtrain_plugins.sign.data.augmentation",
    "medtrain_plugins.sign.dataset": "medtrain_plugins.sign.data.dataset",
    "medtrain_plugins.sign.loss": "medtrain_plugins.sign.model.loss",
    "medtrain_plugins.sign.metrics": "medtrain_plugins.sign.evaluation.metrics",
    "medtrain_plugins.sign.model": "medtrain_plugins.sign.model.model",
}


class KArSL:
    """KArSL: word-level Arabic signs from the landmarks of face, hands and body, by a spatial-temporal transformer."""

    name = "karsl"

    @hookimpl
    def plugin_options(self) -> type[KArSLOptions]:
        """Signs, signers, model size, augmentation."""
        from medtrain_plugins.sign.options import KArSLOptions

        return KArSLOptions

    @hookimpl
    def build_data(self, config: RunConfig) -> Data:
        """Train, validation and test clips. Open settings of the configuration are completed first."""
        from medtrain_plugins.sign.build_data import build_data
        from medtrain_plugins.sign.options import resolve_options

        options = config.options(self.name)
        resolve_options(config, options)
        return build_data(config, options)

    @hookimpl
    def build_model(self, config: RunConfig) -> torch.nn.Module:
        """The transformer in the chosen size; on several GPUs its batch norm uses the batch of all of them."""
        import torch
        from medtrain.protocols import load_state
        from medtrain.weights import read_state, weights_file

        from medtrain_plugins.sign.model.model import SignTransformer

        options = config.options(self.name)
        size = options.size
        model: torch.nn.Module = SignTransformer(
            len(options.sign_numbers),
            head_size=size.head_size,
            heads=size.heads,
            layers=size.layers,
            dropout=options.dropout,
            frames=options.frames,
            interpolation=options.interpolation,
        )
        if options.weights and not config.fresh:
            path = weights_file(options.weights, f"plugins.{self.name}.weights")
            load_state(model, read_state(path), str(path))
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if several and torch.cuda.is_available() and config.computational.device != "cpu":
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return model

    @hookimpl
    def import_weights(self, config: RunConfig, paths: list[Path]) -> Weights | None:
        """A published checkpoint; its size and number of signs come from the folder's name, if that has them."""
        from medtrain_plugins.sign.model.weights import read_published

        return read_published(paths)

    @hookimpl
    def build_loss(self, config: RunConfig) -> ClassLoss:
        """Cross-entropy, the mean over clips."""
        from medtrain_plugins.sign.model.loss import ClassLoss

        return ClassLoss(config.options(self.name).label_smoothing)

    @hookimpl
    def build_optimizer(self, config: RunConfig, model: torch.nn.Module) -> torch.optim.Optimizer | None:
        """Adam with the weight decay in the gradient, as published; the core's AdamW on request."""
        if config.options(self.name).optimizer == "adamw":
            return None
        import torch
        from medtrain import parameter_groups

        settings = config.optimization
        return torch.optim.Adam(parameter_groups(settings, model), lr=settings.learning_rate)

    @hookimpl
    def build_metrics(self, config: RunConfig, data: Data) -> list[SignMetrics]:
        """Top-1, top-5, macro F1, and top-1 of each signer."""
        from medtrain_plugins.sign.evaluation.metrics import SignMetrics

        signers = data.about.get("signers") or sorted(
            {signer for dataset in data.groups().values() for signer in getattr(dataset, "signers", ())}
        )
        return [SignMetrics(config.options(self.name).sign_numbers, signers)]

    @hookimpl
    def build_augmentation(self, config: RunConfig) -> ClipAugmentation:
        """Mirror image, rotation, zoom, shift; and random frame times for each clip and epoch."""
        from medtrain_plugins.sign.data.augmentation import ClipAugmentation

        options = config.options(self.name)
        return ClipAugmentation(
            options.frames,
            options.interpolation,
            jitter=options.jitter,
            flip_p=options.flip_p,
            affine_p=options.affine_p,
            flip_mode=options.flip_mode,
        )

    @hookimpl
    def predict(self, run: Run, sample: Any) -> pd.DataFrame:
        """The signs of clips without labels: a folder of keypoints, an npz file of clips, an npy file of one."""
        from medtrain_plugins.sign.model.predict import predict_signs

        return predict_signs(run, sample, run.config.options(self.name))

    @hookimpl
    def report_sections(self, run: Run) -> list[Section]:
        """Scores by sign, confusions, signers, training curves."""
        from medtrain_plugins.sign.evaluation.plots import sign_sections

        return sign_sections(run, run.config.options(self.name))

    @hookimpl
    def export(self, run: Run, format: str, path: Path, check: Check | None) -> dict[str, Any] | None:
        """ONNX in float32 or with 8-bit weights, and the published checkpoint layout."""
        from medtrain_plugins.sign.model.export import export_signs

        return export_signs(run, run.config.options(self.name), format, path, check)
