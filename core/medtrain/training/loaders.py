"""The loader of a group, how many steps an epoch has, and the data that the training is on."""

from __future__ import annotations

from medtrain.config.sections import RunConfig
from medtrain.data.loader import Loader, sampling_weights
from medtrain.data.split import Split
from medtrain.run import Run
from medtrain.rundir.directory import SplitFolder
from medtrain.training.engine import Engine
from medtrain.training.stages import ScaledSchedule


def make_loader(config: RunConfig, split: Split, group: str, engine: Engine) -> Loader:
    """The loader of a group: shuffled, augmented and seeded for training, in dataset order otherwise."""
    settings, training, on_gpu = config.data, group == "train", engine.world.device.type == "cuda"
    batch_size, workers = settings.batch_size, settings.num_workers
    if not training:
        batch_size = settings.evaluation_batch_size or batch_size
        workers = workers if settings.evaluation_num_workers is None else settings.evaluation_num_workers
    dataset = split.groups[group]
    return Loader(
        dataset,
        batch_size,
        seed=config.run.seed,
        shuffle=training and settings.sampling != "sequential",
        training=training,
        weights=sampling_weights(dataset, settings.sampling) if training else None,
        max_batches=settings.max_batches if training else None,
        drop_last=training and settings.drop_last,
        augmentation=engine.augmentation if training else None,
        collate_fn=split.collate,
        num_workers=workers,
        rank=engine.world.rank,
        world=engine.world.size,
        pin_memory=on_gpu if settings.pin_memory is None else settings.pin_memory and on_gpu,
        prefetch_factor=settings.prefetch_factor if workers else None,
        persistent_workers=settings.persistent_workers and workers > 0,
    )


def steps_per_epoch(batches: int, accumulation_steps: int) -> int:
    """Optimizer steps in an epoch: the last window is stepped however short it is."""
    return -(-batches // accumulation_steps)


class StageData:
    """The data that the training is on: those of the stage of `[[stages]]` under way, or what plugins built anew.

    train, validation: the loaders; no validation when the group is not there or never evaluated.
    """

    def __init__(self, run: Run, engine: Engine, split: Split, folder: SplitFolder) -> None:
        self.run, self.engine, self.folder = run, engine, folder
        self.digest = split.digest()  # of the run's own split: stages may show less of it
        self.config = run.config  # the stage's, once it has begun
        self.stage: int | None = None
        self.train, self.validation = self._loaders(split)

    @property
    def samples_per_step(self) -> int:
        """Of an optimizer step, over all processes."""
        return self.train.global_batch * self.engine.accumulation_steps

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.train), self.engine.accumulation_steps)

    def enter_stage(self) -> None:
        """When the epoch belongs to another stage than the data: that stage's data and learning rate."""
        run, stages = self.run, self.engine.stages
        if not stages or stages.index(run.epoch) == self.stage:
            return
        self.stage = run.stage = stages.index(run.epoch)
        run.stage_settings = settings = run.config.stages[self.stage]
        self.config = stages.config_of(self.stage)
        self.use_split(stages.split_of(self.stage))
        if isinstance(self.engine.schedule, ScaledSchedule):
            self.engine.schedule.set_scale(settings.learning_rate_scale)
        if run.is_main_process:
            self.folder.log(f"stage {self.stage}{' ' if settings.name else ''}{settings.name} from epoch {run.epoch}")

    def rebuild(self) -> None:
        """Ask `build_data` again, when a plugin wants it to (a curriculum, larger patches)."""
        if self.run.rebuild_requested:
            self.run.rebuild_requested = False
            self.use_split(self.engine.stages.rebuild(self.config))

    def use_split(self, split: Split) -> None:
        """Train on these data from now on."""
        self.close()
        self.run.data = split.as_data()
        self.train, self.validation = self._loaders(split)

    def close(self) -> None:
        """End the worker processes of the loaders."""
        for loader in (self.train, self.validation):
            if loader is not None:
                loader.close()

    def _loaders(self, split: Split) -> tuple[Loader, Loader | None]:
        train = make_loader(self.config, split, "train", self.engine)
        settings = self.run.config.optimization
        evaluates = settings.evaluation_interval or settings.evaluation_every_n_steps
        if "validation" not in split.groups or not evaluates:
            return train, None
        return train, make_loader(self.config, split, "validation", self.engine)
