"""Applying a trained registration: the table of `medtrain predict`, and the figures of the report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from medtrain import Run, Section
from medtrain.data import Loader
from torch import Tensor

from medtrain_plugins.mammo_reg_net.metrics import displacement, ncc, ncc_before, negative_jacobian
from medtrain_plugins.mammo_reg_net.model import FIXED, MOVING, PairRegistration
from medtrain_plugins.mammo_reg_net.options import MammoRegNetOptions
from medtrain_plugins.mammo_reg_net.plots import gain_figure, overlay_figure
from medtrain_plugins.mammography.cohort.samples import VIEW_PAIRS
from medtrain_plugins.mammography.model.predict import open_source

IDS = ("sample_id", "patient_id", "exam_id", "laterality", "view", "current_image_id", "previous_image_id", "time_gap")
MEASURES = (ncc_before, ncc, negative_jacobian, displacement)
PICTURES = 4


def predict_pairs(run: Run, source: Any, options: MammoRegNetOptions) -> pd.DataFrame:
    """One row per pair: its ids, `ncc_before`, `ncc`, `negative_jacobian` (%), `displacement` (pixels).

    source: a table, a folder with one, or a folder of images named as in EMBED.
    """
    table, dataset = open_source(source, options, VIEW_PAIRS)
    found: dict[str, list[Tensor]] = {measure.__name__: [] for measure in MEASURES}
    for batch, outputs in _registered(run, Loader(dataset, run.config.data.batch_size), options):
        for measure in MEASURES:
            found[measure.__name__].append(measure(outputs, batch).cpu())
    predicted = table[[name for name in IDS if name in table]].copy()
    for name, values in found.items():
        predicted[name] = torch.cat(values).numpy()
    return predicted


def registration_sections(run: Run, options: MammoRegNetOptions) -> list[Section]:
    """The gain over all pairs, and figures of some pairs from the worst to the best; none without samples."""
    rows = run.evaluation.rows if run.evaluation else {}
    if not len(rows.get("ncc", ())) or not np.isfinite(rows["ncc"]).all():
        return []
    sections = [
        Section(
            "Similarity",
            text="Pearson correlation (NCC) of the current image with the previous one of the same breast and view, as "
            "it is and after registration.",
            figures={"registration_gain": gain_figure(rows)},
        )
    ]
    order = np.argsort(rows["ncc"], kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, PICTURES).round().astype(int))]
    titles = {
        str(rows["sample_id"][i]): f"NCC {rows['ncc_before'][i]:.3f} to {rows['ncc'][i]:.3f}\n"
        f"folded {rows['negative_jacobian'][i]:.2f} %"
        for i in chosen
    }
    if pairs := list(_pictures(run, options, titles)):
        sections.append(
            Section(
                "Registered pairs",
                text="From the pair with the lowest correlation after registration to that with the highest: "
                + ", ".join(pair["sample_id"] for pair in pairs)
                + ". Overlays show the current image in red and the previous one in cyan, grey where they agree. "
                "Arrows point from a place in the current image to where the previous one shows the same tissue; their "
                "length is relative, the colour gives pixels.",
                figures={"registration_overlays": overlay_figure(pairs)},
            )
        )
    return sections


def _pictures(run: Run, options: MammoRegNetOptions, titles: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The named samples of the run's data, registered, for `overlay_figure`."""
    samples: dict[str, Any] = {}
    datasets = [*run.data.groups().values(), run.data.whole] if run.data else []
    for dataset in filter(None, datasets):
        places = {name: i for i, name in enumerate(dataset.sample_ids)}  # type: ignore[attr-defined]
        samples |= {name: dataset[places[name]] for name in titles if name in places}
    batches = [{key: samples[name][key].unsqueeze(0) for key in (FIXED, MOVING)} for name in titles if name in samples]
    names = [name for name in titles if name in samples]
    for name, (batch, outputs) in zip(names, _registered(run, batches, options), strict=True):
        images = {"current": batch[FIXED], "previous": batch[MOVING], "registered": outputs["warped"]}
        yield {
            **{key: image[0, 0].cpu().numpy() for key, image in images.items()},
            "flow": outputs["flow"][0].cpu().numpy(),
            "title": titles[name],
            "sample_id": name,
        }


def _registered(
    run: Run, batches: Any, options: MammoRegNetOptions
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Batches on the device of the run, each with the model's outputs."""
    model = PairRegistration(run.model, options.pixel_scale)
    with torch.no_grad():
        for batch in batches:
            moved = {k: v.to(run.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            yield moved, model(moved)
