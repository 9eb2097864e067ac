"""From a configuration to groups: which clips, how they are dealt, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keypoint_files import clips, frames, write_mmap, write_npz
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.sign import KArSL
from medtrain_plugins.sign.data.container import Clip
from medtrain_plugins.sign.data.dataset import collate
from medtrain_plugins.sign.data.labels import read_labels
from medtrain_plugins.sign.options import parse_signs

REAL_LABELS = Path(__file__).parents[4] / "shared" / "data" / "karsl" / "KARSL-502_Labels.json"
Config = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three signs of three signers, ten clips to train on and four to test each."""
    return write_mmap(tmp_path / "data", clips(signs=(3, 4, 5), signers=(1, 2, 3), train=10, test=4))


def groups(config: Any) -> dict[str, list[str]]:
    return {name: list(dataset.sample_ids) for name, dataset in KArSL().build_data(config).groups().items()}


def test_validation_is_dealt_alike_from_every_sign_and_signer(folder: Path, config: Config) -> None:
    dealt = groups(config(folder, "karsl.signs=3-5"))
    assert {name: len(ids) for name, ids in dealt.items()} == {"train": 72, "validation": 18, "test": 36}
    assert all(name.startswith(("01-test/", "02-test/", "03-test/")) for name in dealt["test"])
    assert set(Counter(name.rsplit("/", 1)[0] for name in dealt["validation"]).values()) == {2}
    assert not set(dealt["train"]) & set(dealt["validation"])
    assert groups(config(folder, "karsl.signs=3-5")) == dealt
    assert groups(config(folder, "karsl.signs=3-5", "run.seed=1"))["validation"] != dealt["validation"]


def test_small_strata_share_what_rounding_withholds(tmp_path: Path, config: Config) -> None:
    folder = write_npz(tmp_path, clips(signs=range(1, 11), signers=(1, 2), train=2, test=1))
    dealt = groups(config(folder, "karsl.signs=1-10"))
    assert len(dealt["validation"]) == 8 and len(dealt["train"]) == 32


def test_one_signer_can_be_left_out(folder: Path, config: Config) -> None:
    dealt = groups(config(folder, "karsl.signs=3-5", "karsl.hold_out_signer=2"))
    assert len(dealt["test"]) == 42 and all(name.startswith("02-") for name in dealt["test"])
    fitted = dealt["train"] + dealt["validation"]
    assert len(fitted) == 84 and not any(name.startswith("02-") for name in fitted)
    with pytest.raises(DataError, match="signer 9"):
        groups(config(folder, "karsl.signs=3-5", "karsl.hold_out_signer=9"))


@pytest.mark.parametrize("write", [write_npz, write_mmap])
def test_a_part_of_signs_and_signers_has_labels_of_its_own(write: Any, tmp_path: Path, config: Config) -> None:
    made = clips(signs=(3, 4, 7), signers=(1, 2, 3))
    folder = write(tmp_path / "data", made)
    data = KArSL().build_data(config(folder, "karsl.signs=4,7", "karsl.signers=[3, 1]"))
    train: Any = data.train
    assert set(train.classes) == {0, 1} and set(train.signs) == {4, 7} and set(train.signers) == {1, 3}
    for number in range(len(train)):
        sample = train[number]
        assert sample["sign"] == [4, 7][sample["label"]]
    assert [row["sign"] for row in data.about["signs"]] == [4, 7]
    wanted = {c.frames.tobytes() for c in made if c.sign in (4, 7) and c.signer in (1, 3) and c.split == "test"}
    assert {
        np.asarray(sample["frames"]).tobytes() for sample in (data.test[i] for i in range(len(data.test)))
    } == wanted


def test_signs_that_are_not_there_are_named(folder: Path, config: Config) -> None:
    with pytest.raises(DataError, match=r"499 of the 502 chosen signs: 1-2,6-502.*karsl\.signs=3-5"):
        groups(config(folder))


def test_a_sign_nobody_trains_on_is_an_error(tmp_path: Path, config: Config) -> None:
    made = [*clips(signs=(1,)), *(c for c in clips(signs=(2,)) if c.split == "test")]
    with pytest.raises(DataError, match="train on of the signs 2"):
        groups(config(write_npz(tmp_path, made), "karsl.signs=1-2"))


def test_missing_files_are_told_and_recorded(tmp_path: Path, config: Config, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_npz(tmp_path, clips())
    (folder / "karsl-kps" / "02-test" / "0003.npz").unlink()
    data = KArSL().build_data(config(folder, "karsl.signs=1-3"))
    assert data.about["missing"] == ["02-test/0003"] and "02-test/0003" in caplog.text


@pytest.mark.parametrize("write", [write_npz, write_mmap])
def test_a_clip_with_nan_is_named_before_training(write: Any, tmp_path: Path, config: Config) -> None:
    made = clips()
    made[7].frames[1, 30, 2] = np.nan
    folder = write(tmp_path / "data", made)
    sign, split = made[7].sign, f"{made[7].signer:02d}-{made[7].split}"
    with pytest.raises(DataError, match=f"{split}/{sign:04d}/.*not finite"):
        groups(config(folder, "karsl.signs=1-3"))
    others = ",".join(str(other) for other in (1, 2, 3) if other != sign)
    assert groups(config(folder, f"karsl.signs={others}"))["train"]  # nobody asked for that clip


def test_adjusted_and_raw_clips_are_never_mixed(tmp_path: Path, config: Config) -> None:
    made = clips()
    made[4] = Clip(made[4].clip, made[4].sign, made[4].signer, made[4].split, frames(6, adjusted=False))
    with pytest.raises(DataError, match=r"mixed(.|\n)*raw: 1 clips"):
        groups(config(write_npz(tmp_path, made), "karsl.signs=1-3"))


def test_the_normalisation_is_found_and_kept(tmp_path: Path, config: Config) -> None:
    raw = [Clip(c.clip, c.sign, c.signer, c.split, frames(6, n, adjusted=False)) for n, c in enumerate(clips())]
    folder = write_npz(tmp_path, raw)
    settled = config(folder, "karsl.signs=1-3")
    data = KArSL().build_data(settled)
    assert settled.options("karsl").normalisation == data.about["normalisation"] == "raw"
    assert data.train is not None and data.train[0]["adjusted"] is False
    with pytest.raises(DataError, match="are raw, this run's are adjusted"):
        groups(config(folder, "karsl.signs=1-3", "karsl.normalisation=adjusted"))


def test_a_batch_packs_clips_end_to_end(folder: Path, config: Config) -> None:
    train: Any = KArSL().build_data(config(folder, "karsl.signs=3-5")).train
    samples = [train[number] for number in (5, 0, 30)]
    batch = collate(samples)
    assert batch["length"].tolist() == [len(sample["frames"]) for sample in samples]
    assert batch["frames"].shape == (sum(batch["length"]), 736)
    start = int(batch["length"][0])
    assert np.array_equal(
        batch["frames"][start : start + len(samples[1]["frames"])].view(-1, 184, 4), samples[1]["frames"]
    )
    assert batch["label"].tolist() == [sample["label"] for sample in samples]
    samples[1] = samples[1] | {"frames": np.full((3, 184, 4), np.inf, np.float32)}
    with pytest.raises(DataError, match=samples[1]["sample_id"].replace("(", r"\(").replace(")", r"\)")):
        collate(samples)


def test_the_original_flags_are_understood(config: Config) -> None:
    options = config(None, "karsl.selected_signs_to=20", "karsl.model_metadata=s_4_6", 'karsl.signers="01 03"')
    options = options.options("karsl")
    assert options.sign_numbers == list(range(1, 21))
    assert (options.model_size, options.signers) == ("s_4_6", [1, 3])
    both = config(None, "karsl.selected_signs_from=5", "karsl.selected_signs_to=9").options("karsl")
    assert both.sign_numbers == [5, 6, 7, 8, 9]
    for wrong in ("karsl.selected_signs_to=0", "karsl.selected_signs_from=503", "karsl.signs=7-3", "karsl.signs=x"):
        with pytest.raises(ConfigError, match="signs"):
            config(None, wrong)
    with pytest.raises(ConfigError, match="give one of them"):
        config(None, "karsl.signs=1-4", "karsl.selected_signs_to=5")
    with pytest.raises(ConfigError, match="did you mean"):
        config(None, "karsl.sings=1-4")
    assert parse_signs("9, 1-3 2") == [1, 2, 3, 9]


def test_published_settings_stand_where_nothing_is_said(folder: Path, config: Config) -> None:
    said = config(folder, "karsl.signs=3-5", "scheduler.patience=7", "data.batch_size=8", "karsl.num_epochs=9")
    KArSL().build_data(said)
    assert (said.data.batch_size, said.scheduler.patience) == (8, 7)
    assert (said.scheduler.name, said.scheduler.factor, said.validation.monitor) == ("plateau", 0.2, "loss")
    assert (said.optimization.clip_grad_norm, said.optimization.weight_decay) == (1.0, 1e-4)
    assert (said.optimization.num_epochs, said.options("karsl").num_epochs) == (9, None)
    silent = config(folder, "karsl.signs=3-5")
    KArSL().build_data(silent)
    assert (silent.data.batch_size, silent.optimization.learning_rate, silent.scheduler.patience) == (64, 1e-3, 3)
    with pytest.raises(ConfigError, match="num_epochs"):
        KArSL().build_data(config(folder, "karsl.num_epochs=9", "optimization.num_epochs=8", "karsl.signs=3-5"))


def test_names_come_from_the_table_beside_the_data(folder: Path, config: Config) -> None:
    words = {"AR_WORDS": [0, *("س" * n for n in range(1, 502))], "EN_WORDS": [f"word {n}" for n in range(502)]}
    (folder / "KARSL-502_Labels.json").write_text(json.dumps(words), encoding="utf-8")
    about = KArSL().build_data(config(folder, "karsl.signs=3-5")).about
    assert about["signs"][0] == {"class": 0, "sign": 3, "arabic": "سس", "english": "word 2"}
    (folder / "KARSL-502_Labels.json").write_text(json.dumps({"AR_WORDS": [], "EN_WORDS": []}))
    with pytest.raises(DataError, match="502 signs"):
        groups(config(folder, "karsl.signs=3-5"))


@pytest.mark.skipif(not REAL_LABELS.is_file(), reason="the published names are not here")
def test_the_published_names() -> None:
    names = read_labels(REAL_LABELS)
    assert (names[1].english, names[31].english, names[32].english) == ("0", "10000000", "alif")
    assert len({name.arabic for name in names.values()}) == 502
    assert names[104].english == names[355].english == "thermometer"


def test_without_data_something_is_said(config: Config) -> None:
    with pytest.raises(ConfigError, match="--preset demo"):
        groups(config(None))
