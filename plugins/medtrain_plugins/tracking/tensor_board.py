"""TensorBoard: event files in the run directory, one axis (optimizer steps) for everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medtrain_plugins.tracking.tracker import Tracker, describe, tracked, tracking_folder, warn

if TYPE_CHECKING:
    from medtrain import Run
    from torch.utils.tensorboard import SummaryWriter

    from medtrain_plugins.tracking.options import TensorBoardOptions


class TensorBoard(Tracker):
    """TensorBoard: metrics, learning rates, gradient norms, memory, throughput and sample predictions."""

    label = "TensorBoard"

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        super().__init__(options)
        self.writer: SummaryWriter | None = None

    @classmethod
    def options_model(cls) -> type[TensorBoardOptions]:
        from medtrain_plugins.tracking.options import TensorBoardOptions

        return TensorBoardOptions

    @tracked
    def on_run_start(self, run: Run) -> None:
        """Opens the event file; earlier values of steps after the checkpoint are void."""
        from torch.utils.tensorboard import SummaryWriter

        self.samples, self.interval = self.settings(run).samples, self.settings(run).gradient_interval
        self.shown = False
        folder = tracking_folder(run) / "tensorboard"
        self.writer = SummaryWriter(str(folder), purge_step=run.step + 1 if folder.exists() else None)
        self.writer.add_text("config", f"```toml\n{run.config.to_toml()}```", run.step)

    @tracked
    def on_epoch_start(self, run: Run) -> None:
        """Samples the steps of the epoch's optimizer."""
        if self.writer is not None:
            self.watch_steps(run, self.interval)

    @tracked
    def on_evaluate_end(self, run: Run) -> None:
        """Sample predictions of the validation group."""
        if self.writer is None or not self.samples:
            return
        from medtrain_plugins.tracking.samples import write_samples

        try:
            write_samples(self.writer, run, self.samples, inputs=not self.shown)
            self.shown = True
        except Exception as error:  # an unusual batch must not stop the curves
            self.samples = 0
            warn(run, f"{self.label}: no sample predictions: {describe(error)}")

    @tracked
    def on_epoch_end(self, run: Run) -> None:
        """Writes the epoch's values at its last step."""
        if self.writer is None:
            return
        from medtrain_plugins.tracking.values import epoch_values

        self._write_steps()
        values = (self.sampler.mean_norm() if self.sampler else {}) | epoch_values(run) | {"epoch": float(run.epoch)}
        for name, value in values.items():
            self.writer.add_scalar(name, value, run.step)
        self.writer.flush()

    @tracked
    def on_checkpoint(self, run: Run) -> None:
        """Writes everything up to a checkpoint to disk."""
        if self.writer is not None:
            self._write_steps()
            self.writer.flush()

    @tracked
    def on_run_end(self, run: Run) -> None:
        """Close the event file."""
        self._close()

    @tracked
    def on_exception(self, run: Run) -> None:
        """Close the event file of a run that was interrupted or failed."""
        self._close()

    def give_up(self, run: Run, error: BaseException) -> None:
        self.writer = None
        super().give_up(run, error)

    def _write_steps(self) -> None:
        for sample in self.sampler.take() if self.sampler is not None else []:
            for name, value in sample.values.items():
                self.writer.add_scalar(name, value, sample.step)  # type: ignore[union-attr]

    def _close(self) -> None:
        if self.writer is not None:
            self._write_steps()
            self.writer.close()
        self.unwatch_steps()
        self.writer = None
