"""Every option of `pivot` is read, and a test would notice if it were not."""

from __future__ import annotations

from pathlib import Path

import pytest
from medtrain_plugins.nodule.options import PivotOptions
from mutations import failure_without, keys_of
from pydantic import BaseModel

HERE = Path(__file__).parent
KEYS = list(keys_of(PivotOptions))
# The tests of each option, or of all below a section.
TESTS = {
    "train_data": "training::test_groups_come_from_the_manifest_or_are_dealt_by_patient",
    "validation_data": "training::test_groups_come_from_the_manifest_or_are_dealt_by_patient",
    "test_data": "training::test_groups_come_from_the_manifest_or_are_dealt_by_patient",
    "fold": "training::test_groups_come_from_the_manifest_or_are_dealt_by_patient",
    "annotations": "training::test_a_folder_of_scans_with_its_tables_is_prepared",
    "excluded": "training::test_a_folder_of_scans_with_its_tables_is_prepared",
    "prepared": "training::test_a_folder_of_scans_with_its_tables_is_prepared",
    "spacing": "training::test_spacing_is_that_of_the_scans",
    "window": "training::test_window_maps_hounsfield_units",
    "sigma_mm": "training::test_heatmap_width_and_stride_of_targets",
    "demo_scans": "training::test_without_data_the_demo_is_made_once",
    "demo_seed": "training::test_without_data_the_demo_is_made_once",
    "sampling": "training::test_patches_follow_the_options",
    "sampling.stride": "training::test_loss_patches_lie_on_the_grid_nodules_first",
    "sampling.positive_fraction": "training::test_positive_patches_are_as_many_as_asked",
    "sampling.hard_negatives": "training::test_hard_negatives_of_an_earlier_run_are_seen_again",
    "sampling.hard_negative_fraction": "training::test_hard_negatives_of_an_earlier_run_are_seen_again",
    "sampling.hard_negative_score": "training::test_hard_negatives_of_an_earlier_run_are_seen_again",
    "model": "options",
    "loss": "options",
    "augmentation": "augmentation",
    "augmentation.enabled": "training::test_augmentation_is_on_unless_switched_off",
    "evaluation": "options",
    "evaluation.detection_every": "training",
    "evaluation.loss_patches": "training::test_loss_patches_lie_on_the_grid_nodules_first",
    "evaluation.untrained": "detection::test_the_report_shows_the_curve_and_the_untrained_network",
    "inference": "inference",
    "inference.lungs_only": "predict::test_lungs_only_looks_at_the_lungs",
}


def named_for(key: str) -> str:
    """Of the option, or of its nearest section."""
    while key not in TESTS:
        key = key.rpartition(".")[0]
    file, _, name = TESTS[key].partition("::")
    return f"{HERE / f'test_nodule_{file}.py'}{'::' * bool(name)}{name}"


def test_no_test_is_named_for_an_option_that_is_none() -> None:
    known = {key for key, _, _ in KEYS}
    sections = {key.rpartition(".")[0] for key in known}
    assert set(TESTS) <= known | sections


@pytest.mark.acceptance
@pytest.mark.parametrize(("key", "owner", "name"), KEYS, ids=[key for key, _, _ in KEYS])
def test_a_test_fails_when_an_option_is_not_read(key: str, owner: type[BaseModel], name: str) -> None:
    assert failure_without(owner, name, [named_for(key)]), f"{key} may be ignored: {named_for(key)} passes without it"
