"""Keypoints on disk: the two published layouts and medtrain's own."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from keypoint_files import clips, frames, write_mmap, write_npz
from medtrain.errors import DataError, UsageError
from medtrain_plugins.sign.commands.data import prepare
from medtrain_plugins.sign.data.container import Clip, write_container
from medtrain_plugins.sign.data.formats import NpzFrames, find_layout, loose_clips, open_clips, read_lengths


def write_own(folder: Path, made: Any) -> Path:
    write_container(folder, made, {})
    return folder


LAYOUTS: dict[str, Callable[..., Path]] = {"npz": write_npz, "mmap": write_mmap, "container": write_own}


def by_place(folder: Path) -> dict[tuple[Any, ...], Any]:
    """Frames by sign, signer, split and number."""
    opened = open_clips(folder)
    found: dict[tuple[Any, ...], Any] = {}
    numbers: dict[tuple[Any, ...], int] = {}
    for clip in opened:
        key = (clip.sign, clip.signer, clip.split)
        numbers[key] = numbers.get(key, -1) + 1
        found[*key, numbers[key]] = clip.frames
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_written_is_read(layout: str, tmp_path: Path) -> None:
    made = clips()
    found = by_place(LAYOUTS[layout](tmp_path / "data", made))
    wanted: dict[tuple[Any, ...], int] = {}
    for clip in made:
        key = (clip.sign, clip.signer, clip.split)
        wanted[key] = wanted.get(key, -1) + 1
        assert np.array_equal(found.pop((*key, wanted[key])), clip.frames)
    assert not found


def test_layouts_hold_equal_clips_unless_rounded(tmp_path: Path) -> None:
    made = clips()
    npz, mmap = by_place(write_npz(tmp_path / "a", made)), by_place(write_mmap(tmp_path / "b", made))
    rounded = by_place(write_mmap(tmp_path / "c", made, half=True))
    assert npz.keys() == mmap.keys() == rounded.keys()
    assert all(np.array_equal(npz[key], mmap[key]) for key in npz)
    worst = max(np.abs(npz[key] - rounded[key]).max() for key in npz)
    assert 1e-4 < worst < 2e-3


def test_the_published_folders_are_found(tmp_path: Path) -> None:
    extracted = tmp_path / "data" / "word-level-arabic-sign-language-extrcted-keypoints"
    write_npz(extracted, clips())
    assert find_layout(tmp_path / "data") == ("npz", extracted / "karsl-kps")
    name = "word-level-arabic-sign-language-preprcsd-keypoints"
    write_mmap(tmp_path / "other" / name / name, clips())
    assert find_layout(tmp_path / "other") == ("mmap", tmp_path / "other" / name / name)
    write_mmap(tmp_path / "data", clips())
    with pytest.raises(DataError, match="several layouts"):
        find_layout(tmp_path / "data")
    with pytest.raises(DataError, match="data prepare karsl"):
        find_layout(tmp_path)


def test_a_sign_without_clips_changes_nothing(tmp_path: Path) -> None:
    folder = write_npz(tmp_path, clips())
    np.savez_compressed(folder / "karsl-kps" / "01-train" / "0004.npz")
    assert len(open_clips(folder).index) == len(clips())


def test_the_index_is_made_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_npz(tmp_path / "data", clips())
    with caplog.at_level("INFO", "medtrain"):
        first = open_clips(folder).index
        again = open_clips(folder).index
        assert caplog.text.count("Looking through") == 1
        assert first.equals(again)
        write_npz(tmp_path / "data", clips(signs=(1, 2, 3, 4)))
        assert open_clips(folder).index["sign"].max() == 4


def test_npz_files_are_closed_and_memory_is_bounded(tmp_path: Path) -> None:
    made = clips()
    folder = write_npz(tmp_path, made)
    opened = open_clips(folder)
    reader = opened.read
    assert isinstance(reader, NpzFrames)
    reader.cache_bytes = 3 * 11 * 184 * 4 * 4
    for number in range(len(made)):
        reader(number)
        assert sum(kept.nbytes for kept in reader._cache.values()) <= reader.cache_bytes
    assert reader._cache and np.array_equal(reader(0), by_place(folder)[1, 1, "test", 0])
    handles = [link.resolve() for link in Path("/proc/self/fd").iterdir()]
    assert not [path for path in handles if path.suffix == ".npz"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: (d / "train_X_shape.npy").unlink(), "train_X_shape.npy"),
        (lambda d: np.save(d / "train_X_shape.npy", np.array([7, 184, 4])), "train_X_shape.npy"),
        (lambda d: np.savez(d / "train_y.npz", np.arange(3)), "train_y.npz"),
        (lambda d: (d / "train_X_map_samples_lens.npy").write_bytes(b"junk"), "train_X_map_samples_lens.npy"),
        (lambda d: np.save(d / "train_X_map_samples_lens.npy", np.array({1: {1: [3]}}, dtype=object)), "add up to 3"),
    ],
)
def test_files_that_do_not_belong_together_are_named(spoil: Any, said: str, tmp_path: Path) -> None:
    folder = write_mmap(tmp_path / "data", clips())
    spoil(folder)
    with pytest.raises(DataError, match=said):
        open_clips(folder)


def test_lengths_are_read_without_trusting_the_pickle(tmp_path: Path) -> None:
    path = tmp_path / "lens.npy"
    lengths = {1: {1: [3, 4], 2: [5]}, 7: {3: [np.int64(70000), np.int32(2)]}}
    np.save(path, np.array(lengths, dtype=object))
    assert read_lengths(path) == {1: {1: [3, 4], 2: [5]}, 7: {3: [70000, 2]}}

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    for inside in (Evil(), {1: {1: [Evil()]}}):
        np.save(path, np.array(inside, dtype=object))
        with pytest.raises(DataError, match="lens"):
            read_lengths(path)
    assert not (tmp_path / "owned").exists()
    # The same file read as trustingly as NumPy can does run it.
    pickle.loads(pickle.dumps(Evil()))
    assert (tmp_path / "owned").exists()


def test_npz_files_with_objects_or_other_shapes_are_refused(tmp_path: Path) -> None:
    for number, array in enumerate((np.array([{}], dtype=object), np.zeros((5, 33, 4)), np.zeros((5, 184, 4), int))):
        path = tmp_path / str(number) / "karsl-kps" / "01-train" / "0001.npz"
        path.parent.mkdir(parents=True)
        np.savez(path, clip=array)
        with pytest.raises(DataError, match=r"0001\.npz"):
            open_clips(tmp_path / str(number))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"0001\.npz"):
        open_clips(tmp_path / "2")


def test_a_container_is_all_there_or_not_there(tmp_path: Path) -> None:
    def failing() -> Any:
        yield from clips()[:3]
        raise DataError("cut short")

    with pytest.raises(DataError, match="cut short"):
        write_container(tmp_path / "own", failing(), {})
    assert list(tmp_path.iterdir()) == []
    write_own(tmp_path / "own", clips())
    with pytest.raises(UsageError, match="not empty"):
        write_own(tmp_path / "own", clips())
    assert np.load(tmp_path / "own" / "frames.npy", mmap_mode="r").shape[1:] == (184, 4)
    (tmp_path / "other").mkdir()
    write_container(tmp_path / "other", clips()[:2], {})
    (tmp_path / "other" / "frames.npy").replace(tmp_path / "own" / "frames.npy")
    with pytest.raises(DataError, match="do not belong together"):
        open_clips(tmp_path / "own")
    about = json.loads((tmp_path / "own" / "dataset.json").read_text())
    (tmp_path / "own" / "dataset.json").write_text(json.dumps(about | {"version": 99}))
    with pytest.raises(DataError, match="99"):
        open_clips(tmp_path / "own")


def run_prepare(*arguments: Any, fails: type[Exception] | None = None) -> str:
    result = CliRunner().invoke(prepare, [str(argument) for argument in arguments])
    if fails is None:
        assert result.exception is None, result.exception
        return result.output
    assert isinstance(result.exception, fails), result
    return str(result.exception)


def test_prepare_takes_a_part_of_either_layout(tmp_path: Path) -> None:
    made = clips(signs=(3, 5, 6), signers=(1, 2, 3))
    for name, write in (("npz", write_npz), ("mmap", write_mmap)):
        source, out = write(tmp_path / name, made), tmp_path / f"{name}-own"
        said = run_prepare("--source", source, "--out", out, "--signs", "5-6", "--signers", "3,1", "--splits", "train")
        wanted = [c for c in made if c.sign in (5, 6) and c.signer in (1, 3) and c.split == "train"]
        assert said.startswith(f"{len(wanted)} clips") and "2 signs by 2 signers, adjusted" in said
        found = by_place(out)
        assert len(found) == len(wanted)
        assert np.array_equal(found[5, 3, "train", 0], by_place(source)[5, 3, "train", 0])


def test_prepare_adjusts_raw_clips_and_halves_them(tmp_path: Path) -> None:
    raw = [Clip("a", 1, 1, "train", frames(5, adjusted=False)), Clip("b", 1, 1, "train", frames(6))]
    source = write_npz(tmp_path / "mixed", raw)
    assert set(open_clips(source).index["normalisation"]) == {"raw", "adjusted"}
    run_prepare("--source", source, "--out", tmp_path / "own", "--adjusted", "--float16")
    opened = open_clips(tmp_path / "own")
    assert set(opened.index["normalisation"]) == {"adjusted"}
    assert opened.read(0).dtype == np.float16


def test_prepare_names_or_drops_clips_that_cannot_be_used(tmp_path: Path) -> None:
    made = clips(signs=(1,), signers=(1,))
    made[1].frames[2, 7, 0] = np.nan
    made[2] = Clip("empty", 1, 1, "train", frames(0))
    source = write_npz(tmp_path / "bad", made)
    said = run_prepare("--source", source, "--out", tmp_path / "own", fails=DataError)
    assert made[1].sample_id in said and "01-train/0001/empty: no frames" in said
    assert not (tmp_path / "own").exists()
    run_prepare("--source", source, "--out", tmp_path / "own", "--drop-bad")
    assert len(open_clips(tmp_path / "own").index) == len(made) - 2
    assert len(json.loads((tmp_path / "own" / "dataset.json").read_text())["dropped"]) == 2


def test_loose_files_are_read_as_clips(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", frames(4))
    np.savez(tmp_path / "two.npz", a=frames(3), b=frames(5))
    assert list(loose_clips(tmp_path / "one.npy")) == ["one"]
    assert [len(clip) for clip in loose_clips(tmp_path / "two.npz").values()] == [3, 5]
    np.save(tmp_path / "wrong.npy", np.zeros((4, 33, 3)))
    with pytest.raises(DataError, match=r"wrong\.npy"):
        loose_clips(tmp_path / "wrong.npy")
