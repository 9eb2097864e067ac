"""The global order of samples, its shards, and what transforms draw: pure functions of where in the run it is."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from medtrain.data import Item, Loader, collate
from medtrain.data.loader import sampling_weights, shard
from medtrain.data.split import Part
from medtrain.errors import DataError
from medtrain.runtime import determinism
from toy_plugin import Shift, Vectors


def drawing(count: int = 11, **settings: Any) -> Loader:
    """A shuffled loader whose samples draw from every generator, and whose augmentation draws too."""
    return Loader(Vectors(0, count, noise=0.1), seed=3, shuffle=True, augmentation=Shift(1.0), **settings)


def contents(items: list[Item]) -> list[Any]:
    return [
        (
            item.positions,
            item.empty,
            item.batch["sample_id"],
            item.batch["features"].tolist(),
            item.draws["shift"].tolist(),
        )
        for item in items
        if item.draws is not None
    ]


def by_sample(items: list[Item]) -> dict[str, Any]:
    found = {}
    for item in items:
        assert item.draws is not None
        if not item.empty:
            columns = (item.batch["sample_id"], item.batch["features"].tolist(), item.draws["shift"].tolist())
            found |= {name: (features, drawn) for name, features, drawn in zip(*columns, strict=True)}
    return found


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    dataset = Vectors(0, 40)
    one = Loader(dataset, 4, seed=1, shuffle=True)
    other = Loader(dataset, 8, seed=1, shuffle=True, rank=1, world=2)
    torch.manual_seed(99)
    assert one.order(5) == other.order(5) == Loader(dataset, 4, seed=1, shuffle=True).order(5)
    assert sorted(one.order(5)) == list(range(40))
    assert one.order(5) != one.order(6)
    assert one.order(5) != Loader(dataset, 4, seed=2, shuffle=True).order(5)
    assert Loader(dataset, 4).order(5) == list(range(40))


class Rare(Vectors):
    """One sample in ten is of class 1."""

    @property
    def classes(self) -> list[int]:
        return [int(i % 10 == 0) for i in range(len(self))]


def test_balanced_sampling_draws_every_class_equally_often() -> None:
    dataset = Rare(0, 400)
    loader = Loader(dataset, 8, seed=1, shuffle=True, weights=sampling_weights(dataset, "class_balanced"))
    drawn = [dataset.classes[i] for epoch in range(5) for i in loader.order(epoch)]
    assert len(drawn) == 2000 and abs(np.mean(drawn) - 0.5) < 0.05  # 4.5 standard errors
    assert loader.order(3) == Loader(dataset, 4, seed=1, shuffle=True, weights=loader.weights, rank=1, world=2).order(3)
    assert loader.order(3) != loader.order(4)
    part = Part(dataset, range(0, 400, 5))
    assert sampling_weights(part, "class_balanced").tolist() == [1 / 40, 1 / 40] * 40
    with pytest.raises(DataError, match=r"data\.sampling: Vectors names no classes"):
        sampling_weights(Vectors(0, 4), "class_balanced")


def test_an_epoch_of_few_batches_still_sees_everything_in_time() -> None:
    loader = Loader(Vectors(0, 20), 2, seed=1, shuffle=True, max_batches=3)
    assert len(loader) == len(list(loader)) == 3
    assert len({i for epoch in range(20) for i in loader.order(epoch)}) == 20
    assert len(Loader(Vectors(0, 20), 2, max_batches=99)) == 10


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_make_up_the_global_batch(world: int) -> None:
    alone = list(drawing(batch_size=6).epoch(2))
    ranks = [list(drawing(batch_size=6 // world, rank=rank, world=world).epoch(2)) for rank in range(world)]
    assert {len(items) for items in ranks} == {len(alone)} == {2}
    for number, whole in enumerate(alone):
        parts = [items[number] for items in ranks if not items[number].empty]
        assert [p for part in parts for p in part.positions] == whole.positions
        assert [name for part in parts for name in part.batch["sample_id"]] == whole.batch["sample_id"]
        assert max(len(p.positions) for p in parts) - min(len(p.positions) for p in parts) <= 1
    shared = {name: value for items in ranks for name, value in by_sample(items).items()}
    assert shared == by_sample(alone)


def test_shard_sizes() -> None:
    assert [list(shard(10, 15, rank, 3)) for rank in range(3)] == [[10, 11], [12, 13], [14]]
    assert [list(shard(10, 11, rank, 2)) for rank in range(2)] == [[10], []]


def test_an_epoch_starts_at_any_batch() -> None:
    loader = drawing(batch_size=3)
    whole = contents(list(loader.epoch(1)))
    assert len(loader) == len(whole) == 4
    for first in range(5):
        assert contents(list(loader.epoch(1, first))) == whole[first:]


def test_workers_change_nothing() -> None:
    plain, working = drawing(batch_size=4), drawing(batch_size=4, num_workers=2)
    for epoch in (0, 1):
        assert contents(list(working.epoch(epoch))) == contents(list(plain.epoch(epoch)))
    assert contents(list(working.epoch(1, 2))) == contents(list(plain.epoch(1, 2)))


class Unreadable(Vectors):
    def __getitem__(self, index: int, /) -> dict[str, Any]:
        raise DataError(f"sample {index} is unreadable")


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_for_people_come_as_they_are(workers: int) -> None:
    with pytest.raises(DataError) as raised:
        list(Loader(Unreadable(0, 4), 2, num_workers=workers))
    assert str(raised.value) == "sample 0 is unreadable"


def test_a_process_without_samples_gets_a_stand_in() -> None:
    first, second = (Loader(Vectors(0, 5), 2, rank=rank, world=2) for rank in range(2))
    last = [list(loader.epoch())[-1] for loader in (first, second)]
    assert (last[0].positions, last[0].empty) == ([4], False)
    assert (last[1].positions, last[1].empty) == ([4], True)
    assert last[1].batch["sample_id"] == ["sample-004"]


def test_draws_follow_the_position_in_the_order_not_the_sample() -> None:
    small, large = drawing(batch_size=2), drawing(batch_size=5)
    assert by_sample(list(small.epoch(4))) == by_sample(list(large.epoch(4)))
    other = list(small.epoch(5))
    assert by_sample(other) != by_sample(list(small.epoch(4)))
    # Two samples swapped in the dataset see each other's draws.
    drawn = [item.draws["shift"].flatten().tolist() for item in small.epoch(4) if item.draws]
    reversed_data = Vectors(0, 11, noise=0.1)
    reversed_data.features = reversed_data.features.flip(0)
    swapped = Loader(reversed_data, 2, seed=3, shuffle=True, augmentation=Shift(1.0))
    assert [item.draws["shift"].flatten().tolist() for item in swapped.epoch(4) if item.draws] == drawn


def test_evaluation_is_neither_augmented_nor_seeded() -> None:
    loader = Loader(Vectors(0, 5), 2, augmentation=Shift(1.0))
    assert [item.draws for item in loader.epoch()] == [None] * 3
    assert [batch["sample_id"] for batch in loader][2] == ["sample-004"]


def test_a_deterministic_dataset_leaves_the_generators_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    list(Loader(Vectors(0, 5), 2, shuffle=True).epoch())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_samples_need_a_name() -> None:
    nameless: Any = [{"x": torch.zeros(1)}]
    with pytest.raises(DataError, match="samples of list have no 'sample_id'"):
        list(Loader(nameless, 1))


def test_collate() -> None:
    batch = collate([{"t": torch.zeros(2), "s": "a", "n": 1, "d": {"x": 1.0}} for _ in range(3)])
    assert batch["t"].shape == (3, 2)
    assert batch["s"] == ["a", "a", "a"]
    assert batch["n"].tolist() == [1, 1, 1]
    assert batch["d"]["x"].shape == (3,)


def test_a_collate_of_the_plugins_own() -> None:
    loader = Loader(Vectors(0, 3), 2, collate_fn=lambda samples: {"count": len(samples)})
    assert [batch["count"] for batch in loader] == [2, 1]


def test_seeds_are_pure_and_distinct() -> None:
    assert determinism.derive(1, 2, 3) == determinism.derive(1, 2, 3)
    seeds = {determinism.derive(s, a, b) for s in range(5) for a in range(5) for b in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert determinism.derive(1, -1) != determinism.derive(1, 1)


def test_model_and_sample_seeds_reach_every_generator() -> None:
    drawn = []
    for seed in (determinism.seed_model, determinism.seed_sample):
        for _ in range(2):
            seed(11)
            drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))  # noqa: NPY002
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[2] == drawn[3]


def test_step_seeds_differ_by_rank_and_step() -> None:
    def draw(seed: int, rank: int, step: int) -> float:
        determinism.StepSeeder(seed, rank, torch.device("cpu"))(step)
        return torch.rand(1).item()

    assert draw(0, 0, 7) == draw(0, 0, 7)
    assert len({draw(0, 0, 7), draw(0, 0, 8), draw(0, 1, 7), draw(1, 0, 7)}) == 4


def test_deterministic_algorithms_can_be_asked_for() -> None:
    determinism.use_deterministic_algorithms(True)
    assert torch.are_deterministic_algorithms_enabled()
    determinism.use_deterministic_algorithms(False)
    assert not torch.are_deterministic_algorithms_enabled()
