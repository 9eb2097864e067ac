"""Every option of the core is read, and a test would notice if it were not."""

from __future__ import annotations

from pathlib import Path

import pytest
from medtrain.config import ParameterGroup, RunConfig, Stage
from mutations import failure_without, keys_of
from pydantic import BaseModel

HERE = Path(__file__).parent
# What only plugins read, or only the command line in processes of its own.
LEFT_OUT = {"data.table", "data.images", "run.plugins", "run.preset", "run.concurrent_splits", "plugins", "stages"}
LISTS = {"stages": Stage, "optimization.groups": ParameterGroup}
KEYS = [
    (key, owner, name)
    for key, owner, name in [
        *keys_of(RunConfig),
        *(item for at, kind in LISTS.items() for item in keys_of(kind, f"{at}.")),
    ]
    if key not in LEFT_OUT and not owner.model_fields[name].is_required()
]
# The tests of each option, or of all below a section.
TESTS = {
    "run.seed": "trainer::test_the_same_seed_gives_the_same_run",
    "run.name": "trainer::test_the_default_run_directory",
    "data": "feeding",
    "data.splits": "folds::test_folds_from_tables",
    "optimization": "optimizers",
    "optimization.groups": "defaults",
    "optimization.freeze": "optimizers::test_frozen_by_pattern",
    "optimization.learning_rate": "defaults",
    "optimization.ema_decay": "loop",
    "optimization.num_epochs": "trainer::test_more_epochs_than_planned",
    "optimization.evaluation_interval": "trainer::test_evaluation_interval",
    "scheduler": "defaults optimizers",
    "validation.monitor": "callbacks trainer",
    "checkpoint": "callbacks trainer",
    "early_stopping": "callbacks",
    "stages": "stages",
    "transfer": "transfer",
    "computational": "optimizers loop trainer",
    "computational.compile": "computational::test_training_goes_through_torch_compile",
    "computational.memory_format": "computational::test_batches_and_weights_lie_in_the_memory_format",
    "computational.find_unused_parameters": "computational::test_parts_that_a_batch_skips_need_find_unused_parameters",
}


def named_for(key: str) -> list[str]:
    """Of the option, or of its nearest section."""
    while key not in TESTS:
        key = key.rpartition(".")[0]
    found = []
    for named in TESTS[key].split():
        file, _, name = named.partition("::")
        found.append(f"{HERE / f'test_{file}.py'}{'::' * bool(name)}{name}")
    return found


def test_no_test_is_named_for_an_option_that_is_none() -> None:
    known = {key for key, _, _ in KEYS}
    assert set(TESTS) <= known | {key.rpartition(".")[0] for key in known}


@pytest.mark.acceptance
@pytest.mark.parametrize(("key", "owner", "name"), KEYS, ids=[key for key, _, _ in KEYS])
def test_a_test_fails_when_an_option_is_not_read(key: str, owner: type[BaseModel], name: str) -> None:
    assert failure_without(owner, name, named_for(key)), f"{key} may be ignored: its tests pass without it"
