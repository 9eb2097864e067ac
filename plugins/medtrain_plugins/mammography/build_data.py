"""From a configuration to the groups of a risk model's run; the demo cohort if there are no data."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from medtrain import Data, RunConfig
from medtrain.data import cache_dir
from medtrain.errors import ConfigError

from medtrain_plugins.mammography.cohort.cohort import Cohort, read_cohort
from medtrain_plugins.mammography.cohort.dataset import ExamDataset
from medtrain_plugins.mammography.cohort.layouts import CSAW_CANCER_TYPES, EMBED_CANCER_TYPES
from medtrain_plugins.mammography.cohort.samples import Samples
from medtrain_plugins.mammography.evaluation.metrics import RiskMetrics
from medtrain_plugins.mammography.options import CohortOptions, RiskOptions

log = logging.getLogger("medtrain")


def build_data(config: RunConfig, options: CohortOptions, samples: Samples) -> Data:
    """The cohort's groups as datasets; without groups one dataset, which the core splits by woman.

    samples: how the model makes samples of a cohort. `about` gets the cohort's counts and the outcomes of the training
    group by year. They weight the C-index, also when the training images are not available.
    """
    table = config.data.table or demo_table(options)
    cohort = read_cohort(table, config.data.images, options.layout, options.columns, options.on_bad_rows)

    def dataset(part: Cohort) -> ExamDataset:
        return ExamDataset(
            samples.make(part), samples, options.image_size, options.image_orientation, layout=cohort.layout
        )

    about = {"cohort": cohort.about, "layout": cohort.layout}
    if not cohort.groups:
        return Data(whole=dataset(cohort), about=about)
    data = Data(about=about)
    for name in cohort.groups:
        setattr(data, name, dataset(cohort.group(name)))
    return data


def demo_table(options: CohortOptions) -> Path:
    """The folder of the embedded demo cohort, made on first use and kept in the cache."""
    if not options.demo_patients:
        raise ConfigError("data.table: no data given; use --data TABLE (and --images DIR), or --preset demo")
    from medtrain_plugins.mammography.synthetic import phantom, synth

    # A changed generator makes another cohort, so its source code is part of the name.
    source = b"".join(Path(str(module.__file__)).read_bytes() for module in (phantom, synth))
    version = hashlib.sha256(source).hexdigest()[:8]
    size = options.image_size or (96, 64)
    name = (
        f"mammography-{options.demo_patients}-{options.demo_seed}-{size[0]}x{size[1]}-{options.demo_signal}-{version}"
    )
    folder = cache_dir() / name
    if not (folder / synth.SETTINGS).is_file():
        log.info("Making the demo cohort: %d women, kept in %s", options.demo_patients, folder)
        synth.synthesize(folder, options.demo_patients, options.demo_seed, image_size=size, signal=options.demo_signal)
    return folder


def outcomes(data: Data) -> dict[str, Any]:
    """Event times of the training group, and whether they were observed, for the metrics."""
    train: Any = data.train
    indices = getattr(train, "indices", range(len(train)))
    labels = getattr(train, "dataset", train).outcomes
    return {name: [int(values[i]) for i in indices] for name, values in labels.items()}


def build_metrics(data: Data, options: RiskOptions, primary_risk: Callable[[Any], Any]) -> list[RiskMetrics]:
    """The family's metric, its pairs weighted by the censoring of the training group."""
    known = data.about.get("train_outcomes") or outcomes(data)
    data.about["train_outcomes"] = known
    types = CSAW_CANCER_TYPES if data.about.get("layout") == "csaw" else EMBED_CANCER_TYPES
    return [
        RiskMetrics(
            primary_risk,
            np.array(known["event_times"]),
            np.array(known["event_observed"]),
            options.bootstrap_replicates,
            types,
            reference=options.compat == "reference",
        )
    ]
