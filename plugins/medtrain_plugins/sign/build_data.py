"""From a configuration to the groups of a run: the chosen clips, their normalisation and their groups."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pandas as pd
from medtrain import Data, RunConfig
from medtrain.data import cache_dir
from medtrain.errors import ConfigError, DataError, first_lines

from medtrain_plugins.sign.data.dataset import ClipDataset, collate
from medtrain_plugins.sign.data.formats import Clips, open_clips
from medtrain_plugins.sign.data.labels import find_labels, read_labels
from medtrain_plugins.sign.options import KArSLOptions

log = logging.getLogger("medtrain")


def build_data(config: RunConfig, options: KArSLOptions) -> Data:
    """Train, validation and test clips of the chosen signs and signers.

    The `train` clips of the dataset are split into train and validation, stratified by sign and signer, and its `test`
    clips are the test group. With `hold_out_signer` all clips of that signer are the test group, and those of the
    others are split. `options.normalisation` is set to that of the data.
    """
    folder = config.data.table or demo_folder(options)
    clips = open_clips(folder)
    chosen = choose(clips.index, options, folder)
    normalisation = find_normalisation(chosen, folder)
    if options.normalisation not in ("auto", normalisation):
        raise DataError(
            f"{folder}: the keypoints are {normalisation}, this run's are {options.normalisation} "
            "(plugins.karsl.normalisation); prepare them alike"
        )
    options.normalisation = normalisation

    signs = options.sign_numbers
    groups = assign_groups(chosen, config.run.seed, config.data.validation_fraction, options.hold_out_signer)
    refuse_unlearnable(chosen.loc[groups["train"]], signs, folder)
    data = Data(collate=collate, about=describe(clips, chosen, groups, options, folder))
    for name, rows in groups.items():
        if len(rows):
            setattr(data, name, ClipDataset(clips, rows, signs, normalisation == "adjusted"))
    return data


def choose(index: pd.DataFrame, options: KArSLOptions, folder: Path) -> pd.DataFrame:
    """The clips of the chosen signs and signers; raises DataError naming those that are unusable or missing."""
    chosen = index[index["sign"].isin(options.sign_numbers)]
    if options.signers:
        chosen = chosen[chosen["signer"].isin(options.signers)]
    asked = {*options.signers, *([] if options.hold_out_signer is None else [options.hold_out_signer])}
    if missing := sorted(asked - set(index["signer"])):
        known = ", ".join(map(str, sorted(set(index["signer"]))))
        raise DataError(f"{folder}: no clips of signer {missing[0]}; there are: {known}")
    if absent := sorted(set(options.sign_numbers) - set(chosen["sign"])):
        raise DataError(
            f"{folder}: no clips of {len(absent)} of the {len(options.sign_numbers)} chosen signs: {ranges(absent)}; "
            f"choose among those there are with --set karsl.signs={ranges(sorted(set(index['sign'])))}"
        )
    bad = chosen[(chosen["length"] == 0) | ~chosen["finite"]]
    problems = [
        f"{clip}: {'values that are not finite' if length else 'no frames'}"
        for clip, length in zip(bad["sample_id"].astype(str), bad["length"], strict=True)
    ]
    if problems:
        raise DataError(
            f"{folder}: {len(problems)} clips cannot be used; repair them, or leave them out with "
            f"`medtrain data prepare karsl --drop-bad`\n{first_lines(problems)}"
        )
    return chosen


def find_normalisation(chosen: pd.DataFrame, folder: Path) -> Any:
    """ "adjusted" or "raw", the same for all clips; otherwise raises DataError with examples of each."""
    kinds = {str(kind): part["sample_id"] for kind, part in chosen.groupby("normalisation") if kind != "unknown"}
    if not kinds:
        raise DataError(f"{folder}: nothing was detected in any frame of the {len(chosen)} clips")
    if len(kinds) > 1:
        found = [f"{kind}: {len(ids)} clips, such as {ids.iloc[0]}" for kind, ids in sorted(kinds.items())]
        raise DataError(
            f"{folder}: adjusted keypoints (centred and scaled) and raw ones are mixed; make them all one kind\n"
            + first_lines(found)
        )
    return next(iter(kinds))


def assign_groups(
    chosen: pd.DataFrame, seed: int, validation_fraction: float, hold_out_signer: int | None = None
) -> dict[str, list[int]]:
    """Rows of the index by group. They depend on the clips' names and the seed, not on the order on disk."""
    if hold_out_signer is None:
        pool, test = chosen[chosen["split"] == "train"], chosen[chosen["split"] == "test"]
    else:
        held_out = chosen["signer"] == hold_out_signer
        pool, test = chosen[~held_out], chosen[held_out]
    validation = _stratified(pool, seed, validation_fraction)
    return {
        "train": pool.index[~pool.index.isin(validation)].tolist(),
        "validation": validation,
        "test": test.index.tolist(),
    }


def _stratified(pool: pd.DataFrame, seed: int, fraction: float) -> list[int]:
    """This fraction of the rows, equally of every sign and signer; rounding errors are carried over to the next."""
    names = pool["sample_id"]
    lots = [hashlib.sha256(f"{seed} {name}".encode()).hexdigest() for name in names]
    taken: list[int] = []
    wanted = 0.0
    for _, stratum in pool.assign(lot=lots).sort_values(["sign", "signer", "lot"]).groupby(["sign", "signer"]):
        wanted += fraction * len(stratum)
        count = min(max(round(wanted), 0), len(stratum))
        wanted -= count
        taken += stratum.index[:count].tolist()
    return sorted(taken)


def refuse_unlearnable(train: pd.DataFrame, signs: list[int], folder: Path) -> None:
    """Raises DataError if a sign has no training clip."""
    if absent := sorted(set(signs) - set(train["sign"])):
        raise DataError(f"{folder}: no clips to train on of the signs {ranges(absent)}; leave them out of karsl.signs")


def describe(
    clips: Clips, chosen: pd.DataFrame, groups: dict[str, list[int]], options: KArSLOptions, folder: Path
) -> dict[str, Any]:
    """The description of the data in the run directory: origin, missing clips, the sign of each class."""
    signers = sorted(map(int, set(chosen["signer"])))
    there = set(zip(chosen["sign"], chosen["signer"], chosen["split"], strict=True))
    wanted = [(s, p, part) for part in sorted(set(chosen["split"])) for p in signers for s in options.sign_numbers]
    missing = [f"{p:02d}-{part}/{s:04d}" for s, p, part in wanted if (s, p, part) not in there]
    if missing:
        log.warning("%s: no clips of %d signs of a signer:\n%s", folder, len(missing), first_lines(missing))
    names = read_labels(path) if (path := _labels(options, folder)) is not None else {}
    return {
        "source": str(folder),
        "dataset": clips.about,
        "normalisation": options.normalisation,
        "nothing_detected": chosen.loc[chosen["normalisation"] == "unknown", "sample_id"].tolist(),
        "missing": missing,
        "signers": signers,
        "counts": {name: len(rows) for name, rows in groups.items()},
        "signs": [
            {"class": number, "sign": sign, **(names[sign]._asdict() if names else {})}
            for number, sign in enumerate(options.sign_numbers)
        ],
    }


def _labels(options: KArSLOptions, folder: Path) -> Path | None:
    return Path(options.labels) if options.labels else find_labels(folder)


def ranges(numbers: list[int]) -> str:
    """Ascending numbers as `1-4,7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def demo_folder(options: KArSLOptions) -> Path:
    """The synthetic clips of the chosen signs, made on first use and kept in the cache."""
    if not options.demo_clips:
        raise ConfigError("data.table: no data given; use --data FOLDER, or --preset demo")
    from medtrain_plugins.sign.data import synth

    # A changed generator makes other clips, so its source code is part of the name.
    version = hashlib.sha256(Path(synth.__file__).read_bytes()).hexdigest()[:8]
    settings = f"{options.signs}-{options.demo_clips}-{options.demo_seed}-{options.demo_signal}-{version}"
    folder = cache_dir() / f"karsl-demo-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        log.info("Making the demo clips of %d signs, kept in %s", len(options.sign_numbers), folder)
        synth.synthesize(
            folder, options.sign_numbers, options.demo_clips, options.demo_seed, signal=options.demo_signal
        )
    return folder
