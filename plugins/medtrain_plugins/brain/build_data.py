"""The images of a run: those of the configuration, or the demo's."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from medtrain import Data, RunConfig
from medtrain.data import cache_dir
from medtrain.errors import ConfigError

from medtrain_plugins.brain.data.cache import locked
from medtrain_plugins.brain.data.dataset import BidsDataset
from medtrain_plugins.brain.options import BrainOptions

log = logging.getLogger("medtrain")


def open_cohort(options: BrainOptions, config: RunConfig) -> Data:
    """The images of a run as one dataset, which the core splits by participant.

    The tree is `data.images`, or `data.table` when that is a folder; a table beside it chooses the sessions. Without
    either, the demo's tree is made. The dataset does not augment: `build_augmentation` does, on training batches.
    """
    table, bids = config.data.table, config.data.images
    if bids is None and table is not None and table.is_dir():
        bids, table = table, None
    if bids is None and table is not None:
        raise ConfigError(f"data.images: the folder of the BIDS or CAPS tree is needed beside the table {table}")
    if bids is None:
        bids = demo_folder(options)
    labelled = options.task in ("classification", "regression")
    if labelled and not options.label:
        raise ConfigError(f"label: {options.task} needs the name of the column to predict")
    dataset = BidsDataset(
        bids,
        options.file_type,
        data=table,
        label=options.label if labelled else None,
        task=options.task,
        masks=options.masks if options.task == "segmentation" else None,
        class_names=options.classes or None if options.task == "classification" else None,
        stratify=options.stratify,
        extraction=options.extraction,
        transforms=options.transforms,
        cache=options.cache,
        cache_dir=options.cache_dir,
        exclude=options.exclude,
        canonical=options.canonical,
        non_finite=options.non_finite,
    )
    return Data(whole=dataset, about=dataset.about)


def demo_folder(options: BrainOptions) -> Path:
    """The synthetic tree of the demo, made on first use and kept in the cache."""
    if not options.demo_participants:
        raise ConfigError("data.images: no data given; use --images BIDS, or --preset demo")
    from medtrain_plugins.brain import synth

    # A changed generator makes other images, so its source code is part of the name.
    version = hashlib.sha256(Path(synth.__file__).read_bytes()).hexdigest()[:8]
    settings = f"{options.demo_participants}-{options.demo_seed}-{options.demo_size}-{version}"
    folder = cache_dir() / f"brain-demo-{settings}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Splits that are trained in parallel ask for it at the same time.
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not (folder / synth.SETTINGS).is_file():
            log.info("Making the demo's images of %d participants, kept in %s", options.demo_participants, folder)
            synth.synthesize(folder, options.demo_participants, size=options.demo_size, seed=options.demo_seed)
    return folder
