"""The caches: shared memory, and a file that follows its sources."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.brain.data import cache as module
from medtrain_plugins.brain.data.cache import Kind, MemoryCache, Source, open_cache

KINDS = [Kind((2, 3), "<i2"), Kind((5,), "<f4"), Kind((1,), "|u1")]


def test_memory_keeps_what_was_put_in_its_own_type() -> None:
    cache = MemoryCache(KINDS)
    assert cache.get(0) is None
    cache.put(0, np.arange(6, dtype=np.int16).reshape(2, 3))
    found = cache.get(0)
    assert found is not None and found.dtype == np.int16 and not found.flags.writeable
    np.testing.assert_array_equal(found, np.arange(6).reshape(2, 3))
    unexpected = np.ones((4, 4), np.float32)
    cache.put(1, unexpected)
    np.testing.assert_array_equal(cache.get(1), unexpected)  # type: ignore[arg-type]
    assert cache.get(2) is None


def test_what_a_forked_process_reads_all_have() -> None:
    cache = MemoryCache(KINDS)
    worker = multiprocessing.get_context("fork").Process(target=cache.put, args=(1, np.full(5, 7, np.float32)))
    worker.start()
    worker.join()
    np.testing.assert_array_equal(cache.get(1), np.full(5, 7))  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(cache)).get(1) is None


def test_more_than_the_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="use the cache on disk"):
        MemoryCache([Kind((2**40,), "<f4")])


class Images:
    """Sources on disk, and how often each was read."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.paths = [folder / f"{number}.txt" for number in range(count)]
        for number, path in enumerate(self.paths):
            path.write_text(str(number))
        self.read: list[int] = []

    @property
    def sources(self) -> list[Source]:
        return [Source(f"image-{path.stem}", (str(path),)) for path in self.paths]

    def make(self, number: int) -> np.ndarray:
        self.read.append(number)
        value = int(self.paths[number].read_text())
        return np.full((number + 1, 4), value, np.int16)

    def open(self, folder: Path, **settings: object) -> list[int]:
        """The values that the cache gives."""
        cache = open_cache(folder, self.sources, settings, self.make)
        arrays = [cache.get(number) for number in range(len(self.paths))]
        assert all(array is not None and array.dtype == np.int16 for array in arrays)
        return [int(array[0, 0]) for array in arrays if array is not None]


def test_disk_is_read_once_and_again_where_a_source_changed(tmp_path: Path) -> None:
    images = Images(tmp_path)
    assert images.open(tmp_path / "cache") == [0, 1, 2] and images.read == [0, 1, 2]
    assert images.open(tmp_path / "cache") == [0, 1, 2] and images.read == [0, 1, 2]
    images.paths[1].write_text("9")
    os.utime(images.paths[1], ns=(1, 1))
    assert images.open(tmp_path / "cache") == [0, 9, 2] and images.read == [0, 1, 2, 1]
    os.utime(images.paths[2], ns=(5, 5))
    assert images.open(tmp_path / "cache") == [0, 9, 2] and images.read == [0, 1, 2, 1]
    assert len(list((tmp_path / "cache").glob("images-*.bin"))) == 1


def test_other_settings_and_other_sources_are_other_arrays(tmp_path: Path) -> None:
    images = Images(tmp_path)
    images.open(tmp_path / "cache", transforms=["A"])
    images.open(tmp_path / "cache", transforms=["B"])
    assert images.read == [0, 1, 2] * 2
    images.paths.append(tmp_path / "3.txt")
    images.paths[3].write_text("3")
    assert images.open(tmp_path / "cache", transforms=["B"]) == [0, 1, 2, 3] and images.read[6:] == [3]
    few = Images(tmp_path, 2)
    assert few.open(tmp_path / "cache", transforms=["B"]) == [0, 1] and not few.read
    few.paths[0].write_text("77")
    assert few.open(tmp_path / "cache", transforms=["B"]) == [77, 1] and few.read == [0]
    assert images.open(tmp_path / "cache", transforms=["B"]) == [77, 1, 2, 3] and images.read[7:] == []


@pytest.mark.parametrize("damage", ["no data", "short data", "version", "no index", "bad index"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    images, folder = Images(tmp_path), tmp_path / "cache"
    images.open(folder)
    (data,) = folder.glob("images-*.bin")
    index = folder / "index.json"
    if damage == "no data":
        data.unlink()
    elif damage == "short data":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "version":
        index.write_text(json.dumps(json.loads(index.read_text()) | {"version": 0}))
    elif damage == "no index":
        index.unlink()
    else:
        index.write_text("{")
    assert images.open(folder) == [0, 1, 2] and images.read == [0, 1, 2] * 2


def test_an_interrupted_cache_leaves_the_old_one(tmp_path: Path) -> None:
    images, folder = Images(tmp_path), tmp_path / "cache"
    images.open(folder)
    before = sorted(path.name for path in folder.iterdir())
    images.paths[2].write_text("not a number")
    with pytest.raises(ValueError, match="invalid literal"):
        images.open(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    images.paths[2].write_text("5")
    assert images.open(folder) == [0, 1, 5]


def test_processes_that_open_at_once_make_it_once(tmp_path: Path) -> None:
    images = Images(tmp_path)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def work() -> None:
        values = images.open(tmp_path / "cache")
        answers.put((values, len(images.read)))

    workers = [context.Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(found, key=lambda answer: answer[1]) == [([0, 1, 2], 0), ([0, 1, 2], 0), ([0, 1, 2], 3)]


def test_an_open_cache_can_be_sent_to_another_process(tmp_path: Path) -> None:
    images = Images(tmp_path)
    cache = open_cache(tmp_path / "cache", images.sources, {}, images.make)
    cache.get(0)
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).get(2), np.full((3, 4), 2))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    images = Images(tmp_path)
    with pytest.raises(DataError, match="not a cache of images"):
        open_cache(tmp_path, images.sources, {}, images.make)
    assert module.LOCK not in {path.name for path in tmp_path.iterdir()}
