"""Tiny synthetic scans and configurations of the plugin `pivot` for its tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtrain.config import Layers, RunConfig
from medtrain_plugins.nodule import Pivot
from medtrain_plugins.nodule.options import PivotOptions
from medtrain_plugins.nodule.synthetic.synth import demo_manifest

# Two scans of a patient each in validation and test, five to train on.
SCANS, SHAPE, SPACING = 9, (32, 48, 48), (2.5, 2.5, 2.5)
SMALL: dict[str, Any] = {
    "sampling": {"patch_size": [16, 16, 16], "patches_per_volume": 2},
    "model": {"base_filters": 2, "depth": 2, "output_stride": 2, "norm": "group"},
    "augmentation": {"enabled": False},
    "inference": {"window": [32, 48, 48], "overlap": 0.0},
    "evaluation": {"loss_patches": 2, "replicates": 20},
}


def make_manifest(folder: Path, seed: int = 0) -> Path:
    """A manifest of prepared scans with nodules."""
    return demo_manifest(folder, SCANS, seed, shape=SHAPE, spacing=SPACING)


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables, the later over the earlier."""
    found: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            old = found.get(key)
            found[key] = merged(old, value) if isinstance(value, Mapping) and isinstance(old, dict) else value
    return found


def options_of(*changes: Mapping[str, Any]) -> PivotOptions:
    """Options with tables laid over the defaults."""
    return PivotOptions.model_validate(merged(*changes))


def config_of(manifest: Path | None, options: Mapping[str, Any] | None = None, **sections: Any) -> RunConfig:
    """A configuration of a run on the CPU with `SMALL` options."""
    values = merged(
        {
            "run": {"plugins": ["pivot"]},
            "data": {"batch_size": 5},
            "computational": {"device": "cpu"},
            "optimization": {"num_epochs": 1, "learning_rate": 0.01, "max_steps": None},
            "plugins": {"pivot": merged(SMALL, options or {})},
        },
        sections,
    )
    values["optimization"] = {key: value for key, value in values["optimization"].items() if value is not None}
    if manifest is not None:
        values["data"]["table"] = str(manifest)
    layers = Layers()
    layers.add(values, "test")
    return layers.build({"pivot": Pivot().plugin_options()})
