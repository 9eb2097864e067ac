"""The loader of a group, and how many steps an epoch has."""

from __future__ import annotations

from medtrain.config.sections import RunConfig
from medtrain.data.loader import Loader, sampling_weights
from medtrain.data.split import Split
from medtrain.training.engine import Engine


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
