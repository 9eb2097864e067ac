"""Splits as folders of tables: `make_split` and `make_kfold` deal the participants of a table and write who is where.

The folders have the layout of ClinicaDL 2.0, whose readers open them, and `SingleSplit` and `KFold` open its own. What
more there is to say (where the table came from, groups, repeats, p-values) is in `medtrain.json` beside it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtrain.data import infer_types, missing_words, read_table
from medtrain.errors import DataError, UsageError, first_lines, nearest
from medtrain.rundir import new_folder

from medtrain_plugins.standard.splits.partition import (
    assign_folds,
    hold_outs,
    is_continuous,
    leave_one_out,
    natural_key,
)

if TYPE_CHECKING:
    import pandas as pd

PARTICIPANT, SESSION = "participant_id", "session_id"
TRAIN, BASELINE = "train", "_baseline"


SINGLE_CONFIG, KFOLD_CONFIG, FACTS = "single_split_config.json", "kfold_config.json", "medtrain.json"


_FIRST_SESSIONS = ("bl", "baseline")


def make_split(
    data: str | Path | pd.DataFrame,
    n_test: float = 0.2,
    output_dir: str | Path | None = None,
    subset_name: str = "test",
    stratification: str | Sequence[str] | bool = False,
    p_categorical_threshold: float = 0.80,
    p_continuous_threshold: float = 0.80,
    longitudinal: bool = False,
    n_try_max: int = 1000,
    seed: int | None = None,
    groups: str | None = None,
    n_splits: int | None = None,
    repeats: int = 1,
) -> Path:
    """Hold out participants of a table; returns the new folder `split` (or `split_2`, ...) in `output_dir`.

    data: TSV or CSV file, or DataFrame, with the columns participant_id and session_id; rows in any order.
    n_test: the fraction of participants to hold out, or their number if it is 1 or more.
    output_dir: default, for a file: the folder it is in.
    stratification: columns to balance, categories or numbers, by their values in the first session; True: age and sex.
    p_categorical_threshold, p_continuous_threshold: how alike both sides must be: the p-values of a chi-square test
        (with continuity correction) and of Student's t-test, of each stratification column.
    longitudinal: hold out all sessions of a participant, not only the first. Training always has all sessions.
    n_try_max: balanced deals to try until the p-values reach the thresholds.
    seed: the same seed, the same split; None: a fresh one, which the folder records.
    groups: a column such as a site or family; who shares its value stays on one side.
    n_splits, repeats: also deal the training side into folds, as `make_kfold` does, in a folder inside the new one.

    Raises UsageError for arguments and DataError for tables that cannot be used, and when the thresholds are not
    reached; nothing is written then.
    """
    if n_test <= 0:
        raise UsageError(f"n_test={n_test}: hold out a fraction (0.2) or a number (12) of participants")
    for name, threshold in (("categorical", p_categorical_threshold), ("continuous", p_continuous_threshold)):
        if not 0 <= threshold <= 1:
            raise UsageError(f"p_{name}_threshold={threshold}: must be between 0 and 1")
    if n_try_max < 1:
        raise UsageError(f"n_try_max={n_try_max}: must be at least 1")
    _check_subset(subset_name)
    columns = _stratification(stratification, ["age", "sex"])
    table = Table.read(data, columns, groups)
    folder = _output_folder(data, output_dir)
    seed = _seed(seed)

    people = table.people
    wanted = int(n_test) if n_test >= 1 else max(round(n_test * len(people)), 1)
    thresholds = {
        column: p_continuous_threshold if table.is_continuous(column) else p_categorical_threshold for column in columns
    }
    held_out, p_values = _hold_out(table, wanted, seed, thresholds, n_try_max)
    is_held = people.isin(held_out).to_numpy()
    config = {
        "subset_name": subset_name,
        "stratification": columns,
        "longitudinal": longitudinal,
        "seed": seed,
        "n_test": n_test,
        "p_categorical_threshold": p_categorical_threshold,
        "p_continuous_threshold": p_continuous_threshold,
    }
    files = {SINGLE_CONFIG: _json(config), **table.sides(is_held, subset_name, longitudinal)}
    files |= table.statistics(is_held, subset_name)
    facts = {**table.facts, "groups": groups, "p_values": p_values, "sizes": [table.sizes(is_held, subset_name)]}
    files[FACTS] = _json(facts)
    if n_splits is not None:
        training = table.part(~is_held)
        folds = _folds(training, n_splits, "validation", longitudinal, seed, repeats, leave=False)
        files |= {f"{_fold_folder(n_splits, repeats)}/{path}": text for path, text in folds.items()}
    return _publish(folder, "split", files)


def make_kfold(
    data: str | Path | pd.DataFrame,
    n_splits: int = 5,
    output_dir: str | Path | None = None,
    subset_name: str = "validation",
    stratification: str | Sequence[str] | bool = False,
    longitudinal: bool = False,
    seed: int | None = None,
    repeats: int = 1,
    groups: str | None = None,
    leave_one_out: bool = False,
) -> Path:
    """Deal the participants of a table into folds; returns the new folder `5_fold` (or `5_fold_2`, ...).

    data, output_dir, longitudinal, seed, groups: as in `make_split`.
    n_splits: folds, at least 2. subset_name: what the held-out side of each fold is called.
    stratification: one or several columns, categories or numbers; True: sex.
    repeats: deal so often, each time anew: `3x5_fold` has the 15 folders split-0 to split-14, five a time.
    leave_one_out: instead, a fold for each value of the column `groups`, which it leaves out (`leave_one_site_out`).

    Raises UsageError for arguments and DataError for tables that cannot be used; nothing is written then.
    """
    if repeats < 1:
        raise UsageError(f"repeats={repeats}: must be at least 1")
    if leave_one_out and groups is None:
        raise UsageError('leave_one_out needs the column to leave out by: groups="site"')
    if leave_one_out and repeats > 1:
        raise UsageError("leaving one group out draws nothing at random: it cannot be repeated")
    _check_subset(subset_name)
    columns = [] if leave_one_out else _stratification(stratification, ["sex"])
    table = Table.read(data, columns, groups)
    files = _folds(table, n_splits, subset_name, longitudinal, _seed(seed), repeats, leave_one_out)
    stem = f"leave_one_{_plain(str(groups))}_out" if leave_one_out else _fold_folder(n_splits, repeats)
    return _publish(_output_folder(data, output_dir), stem, files)


@dataclass
class Table:
    """The rows of a split's input, sorted by participant and session, and the first session of each participant."""

    rows: pd.DataFrame
    stratification: list[str]
    groups: str | None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, data: str | Path | pd.DataFrame, stratification: Sequence[str], groups: str | None) -> Table:
        """From a file or DataFrame; keeps the two ids, the stratification columns and the groups."""
        import pandas as pd
        from medtrain import __version__

        if isinstance(data, pd.DataFrame):
            where, digest = "the table", hashlib.sha256(data.to_csv(sep="\t", index=False).encode()).hexdigest()
            rows = data
        else:
            where = str(data)
            rows = read_sessions(Path(data))
            digest = hashlib.sha256(Path(data).read_bytes()).hexdigest()
        used = [PARTICIPANT, SESSION, *dict.fromkeys([*stratification, *([groups] if groups else [])])]
        for column in used:
            if column not in rows.columns:
                known = ", ".join(map(str, rows.columns))
                raise DataError(
                    f"{where}: no column {column!r}{nearest(column, map(str, rows.columns))}; it has: {known}"
                )
        rows = _clean(rows[used], where, groups)
        facts = {
            "schema": 1,
            "medtrain": __version__,
            "input": {
                "file": None if isinstance(data, pd.DataFrame) else Path(data).name,
                "sha256": digest,
                "rows": len(rows),
                "participants": int(rows[PARTICIPANT].nunique()),
            },
        }
        return cls(rows, list(stratification), groups, facts)

    def __post_init__(self) -> None:
        self.baseline = self.rows.drop_duplicates(PARTICIPANT).reset_index(drop=True)
        self.people = self.baseline[PARTICIPANT]

    @property
    def strata(self) -> list[Any] | None:
        """A tuple per participant, of her values in the first session."""
        if not self.stratification:
            return None
        return list(zip(*(self._values(column) for column in self.stratification), strict=True))

    @property
    def group_of(self) -> list[str] | None:
        return None if self.groups is None else self.baseline[self.groups].tolist()

    def is_continuous(self, column: str) -> bool:
        return is_continuous(self._values(column))

    def part(self, chosen: Any) -> Table:
        """Only some participants; `chosen` is a flag for each."""
        people = set(self.people[chosen])
        rows = self.rows[self.rows[PARTICIPANT].isin(people)].reset_index(drop=True)
        return Table(rows, self.stratification, self.groups, self.facts)

    def sides(self, held_out: Any, subset: str, longitudinal: bool) -> dict[str, str]:
        """The tables of both sides by file name; `held_out` is a flag for each participant."""
        is_held = self.rows[PARTICIPANT].isin(set(self.people[held_out])).to_numpy()
        files = {
            f"{TRAIN}{BASELINE}.tsv": _tsv(self.baseline[~held_out]),
            f"{TRAIN}.tsv": _tsv(self.rows[~is_held]),
            f"{subset}{BASELINE}.tsv": _tsv(self.baseline[held_out]),
        }
        if longitudinal:
            files[f"{subset}.tsv"] = _tsv(self.rows[is_held])
        return files

    def sizes(self, held_out: Any, subset: str) -> dict[str, int]:
        """Participants on each side."""
        return {TRAIN: int((~held_out).sum()), subset: int(held_out.sum())}

    def p_values(self, held_out: Any) -> dict[str, float]:
        """How alike both sides are in each stratification column (1: as alike as can be)."""
        found = {}
        for column in self.stratification:
            values = self.baseline[column]
            test = _t_test if self.is_continuous(column) else _chi_square
            found[column] = test(values[held_out], values[~held_out])
        return found

    def statistics(self, held_out: Any, subset: str) -> dict[str, str]:
        """Both sides in figures: means and SDs of continuous columns, counts of the others."""
        import pandas as pd

        train, test = self.baseline[~held_out], self.baseline[held_out]
        continuous = [column for column in self.stratification if self.is_continuous(column)]
        files = {}
        if continuous:
            rows: list[tuple[Any, ...]] = [(c, "mean", train[c].mean(), test[c].mean()) for c in continuous]
            rows += [(c, "std", train[c].std(), test[c].std()) for c in continuous]
            made = pd.DataFrame(rows, columns=["label", "statistic", TRAIN, subset])
            files["split_continuous_stats.tsv"] = _tsv(made)
        rows = []
        for column in (c for c in self.stratification if c not in continuous):
            for value in sorted(self.baseline[column].dropna().unique(), key=lambda v: natural_key(str(v))):
                counts = [int((side[column] == value).sum()) for side in (train, test)]
                shares = [n / len(side) for n, side in zip(counts, (train, test), strict=True)]
                rows += [(column, value, "proportion", *shares), (column, value, "count", *counts)]
        if rows:
            made = pd.DataFrame(rows, columns=["label", "value", "statistic", TRAIN, subset])
            files["split_categorical_stats.tsv"] = _tsv(made)
        return files

    def _values(self, column: str) -> list[Any]:
        values: list[Any] = self.baseline[column].tolist()
        return values


def read_sessions(path: Path) -> pd.DataFrame:
    """The table of a split: ids as text, columns of numbers as numbers. Raises UsageError or DataError."""
    if not path.is_file():
        raise UsageError(f"{path}: cannot be read: No such file")
    table = infer_types(read_table(path), missing_words(path), text=(PARTICIPANT, SESSION))
    return table.reset_index(drop=True)


def session_key(session: str) -> Any:
    """Sorts sessions in time: M6 before M12, ISO dates by date, `bl` and `baseline` first."""
    label = session.lower().removeprefix("ses-")
    dates = re.sub(r"(\d{4})-(\d{2})-(\d{2})", r"\1\2\3", label)
    return label not in _FIRST_SESSIONS, natural_key(dates), session


def _clean(rows: pd.DataFrame, where: str, groups: str | None) -> pd.DataFrame:
    """Rows sorted, ids as text, repeated rows once; refuses what is missing or contradicts itself."""
    if not len(rows):
        raise DataError(f"{where}: the table is empty")
    rows = rows.copy()
    for column in dict.fromkeys([PARTICIPANT, SESSION, *([groups] if groups else [])]):
        missing = rows[column].isna() | (rows[column].astype(str).str.strip() == "")
        if missing.any():
            problems = [f"row {i + 1}" for i in missing.to_numpy().nonzero()[0]]
            raise DataError(f"{where}: {column} is missing in {len(problems)} rows:\n{first_lines(problems)}")
        rows[column] = rows[column].astype(str).str.strip()
    rows = rows.drop_duplicates()
    twice = rows.duplicated([PARTICIPANT, SESSION], keep=False)
    if twice.any():
        pairs = sorted({f"{p} {s}" for p, s in rows.loc[twice, [PARTICIPANT, SESSION]].itertuples(index=False)})
        raise DataError(
            f"{where}: rows of one session contradict each other in {', '.join(rows.columns[2:])}; "
            f"keep one of each:\n{first_lines(pairs)}"
        )
    person_key = {person: (natural_key(person), person) for person in rows[PARTICIPANT].unique()}
    time_key = {session: session_key(session) for session in rows[SESSION].unique()}
    keys = [(person_key[p], time_key[s]) for p, s in zip(rows[PARTICIPANT], rows[SESSION], strict=True)]
    return rows.iloc[sorted(range(len(rows)), key=keys.__getitem__)].reset_index(drop=True)


def _hold_out(
    table: Table, wanted: int, seed: int, thresholds: dict[str, float], tries: int
) -> tuple[set[str], dict[str, float]]:
    """The first balanced deal whose p-values reach the thresholds, and these p-values."""
    _check_groups(table)
    nearest_miss, least = {}, float("inf")
    for held_out in islice(hold_outs(table.people.tolist(), table.strata, wanted, seed, table.group_of), tries):
        p_values = table.p_values(table.people.isin(held_out).to_numpy())
        miss = max((thresholds[column] - p for column, p in p_values.items()), default=0.0)
        if miss <= 0:
            return held_out, p_values
        if miss < least:
            nearest_miss, least = p_values, miss
    short = [
        f"{column}: p = {p:.3f}, wanted {thresholds[column]:g} "
        f"(p_{'continuous' if table.is_continuous(column) else 'categorical'}_threshold)"
        for column, p in nearest_miss.items()
        if p < thresholds[column]
    ]
    raise DataError(
        f"no split of {len(table.people)} participants with {wanted} held out reaches the thresholds in {tries} "
        f"balanced deals; the nearest misses them in:\n{first_lines(short)}\n"
        "Lower these thresholds, hold out more participants, or stratify on fewer columns. Nothing was written."
    )


def _folds(
    table: Table, n_splits: int, subset: str, longitudinal: bool, seed: int, repeats: int, leave: bool
) -> dict[str, str]:
    """The files of a k-fold folder by path."""
    _check_groups(table)
    people = table.people.tolist()
    parts: list[tuple[dict[str, Any], Any]] = []
    if leave:
        group = table.people.map(leave_one_out(people, table.group_of or []))
        names = sorted(set(group), key=lambda name: (natural_key(name), name))
        parts += [({"left_out": name}, (group == name).to_numpy()) for name in names]
    for repeat in range(0 if leave else repeats):
        fold_of = assign_folds(people, table.strata, n_splits, seed, table.group_of, repeat)
        number = table.people.map(fold_of).to_numpy()
        parts += [({"repeat": repeat}, number == fold) for fold in range(n_splits)]
    config = {
        "subset_name": subset,
        # One text, because this file's other reader knows one column only.
        "stratification": ",".join(table.stratification) or None,
        "longitudinal": longitudinal,
        "seed": seed,
        "n_splits": len(parts),
    }
    facts = {
        **table.facts,
        "participants": len(people),
        "stratification": table.stratification,
        "groups": table.groups,
        "repeats": repeats,
        "sizes": [{**about, **table.sizes(held_out, subset)} for about, held_out in parts],
    }
    files = {KFOLD_CONFIG: _json(config), FACTS: _json(facts)}
    for index, (_, held_out) in enumerate(parts):
        for name, text in table.sides(held_out, subset, longitudinal).items():
            files[f"split-{index}/{name}"] = text
    return files


def _check_groups(table: Table) -> None:
    """Refuses participants with sessions in two groups (the dealing sees the first session only)."""
    if table.groups is None:
        return
    kinds = table.rows.drop_duplicates([PARTICIPANT, table.groups])
    torn = kinds[kinds[PARTICIPANT].duplicated(keep=False)]
    if len(torn):
        names = torn.groupby(PARTICIPANT, sort=False)[table.groups].agg(" and ".join)
        raise DataError(
            f"a participant must have one {table.groups} in all sessions, or that group cannot stay together:\n"
            f"{first_lines([f'{name}: {values}' for name, values in names.items()])}"
        )


def _t_test(one: Any, other: Any) -> float:
    """Student's t-test, missing values left out; 0 where it cannot be computed."""
    from scipy.stats import ttest_ind_from_stats

    sides = [side.dropna() for side in (one, other)]
    if min(map(len, sides)) == 0 or sum(map(len, sides)) < 3:
        return 0.0
    (mean, sd, n), (mean_2, sd_2, n_2) = [(s.mean(), s.std() if len(s) > 1 else 0.0, len(s)) for s in sides]
    if sd == sd_2 == 0:
        return float(mean == mean_2)
    return float(ttest_ind_from_stats(mean, sd, n, mean_2, sd_2, n_2).pvalue)


def _chi_square(one: Any, other: Any) -> float:
    """Chi-square test of the table side x value, with Yates's continuity correction: people are whole."""
    import numpy as np
    from scipy.stats import chi2
    from scipy.stats.contingency import expected_freq

    counts = [side.fillna("").astype(str).value_counts() for side in (one, other)]
    values = sorted(set(counts[0].index) | set(counts[1].index))
    if len(values) < 2:
        return 1.0
    observed = np.array([[side.get(value, 0) for value in values] for side in counts])
    expected = expected_freq(observed)
    distance = np.maximum(np.abs(observed - expected) - 0.5, 0.0)
    return float(chi2.sf((distance**2 / expected).sum(), len(values) - 1))


def _stratification(given: str | Sequence[str] | bool, default: list[str]) -> list[str]:
    if isinstance(given, bool) or given is None:
        return default if given else []
    return [given] if isinstance(given, str) else list(dict.fromkeys(given))


def _seed(seed: int | None) -> int:
    if seed is None:
        return secrets.randbelow(2**31)
    if isinstance(seed, bool) or seed < 0:
        raise UsageError(f"seed={seed}: must be a whole number, 0 or more")
    return int(seed)


def _check_subset(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name == TRAIN or name.endswith(BASELINE):
        raise UsageError(
            f"subset_name={name!r}: use letters, digits, - and _, and another name than the training side's"
        )


def _output_folder(data: Any, output_dir: str | Path | None) -> Path:
    if output_dir is not None:
        return Path(output_dir)
    if isinstance(data, str | Path):
        return Path(data).parent
    raise UsageError("output_dir is missing: a DataFrame lies in no folder, so say where the split goes")


def _fold_folder(n_splits: int, repeats: int) -> str:
    return f"{n_splits}_fold" if repeats == 1 else f"{repeats}x{n_splits}_fold"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)


def _tsv(rows: pd.DataFrame) -> str:
    # As the reader of tables wants it: no quotes, and no tabs within cells.
    clean = rows.replace({r"[\t\r\n]+": " "}, regex=True)
    text: str = clean.to_csv(sep="\t", index=False, lineterminator="\n", quoting=csv.QUOTE_NONE)
    return text


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


def _publish(parent: Path, stem: str, files: dict[str, str]) -> Path:
    """Write a folder aside and give it the first free name: it is there whole or not at all."""
    for target in _names(parent, stem):
        try:
            with new_folder(target) as aside:
                for path, text in files.items():
                    (aside / path).parent.mkdir(parents=True, exist_ok=True)
                    (aside / path).write_text(text, encoding="utf-8")
            return target
        except OSError as error:
            # When it is there, another process took the name in the meantime.
            if not target.exists():
                raise UsageError(f"{parent}: the split cannot be written: {error.strerror or error}") from None
    raise AssertionError("names do not run out")


def _names(parent: Path, stem: str) -> Iterator[Path]:
    yield from (path for n in count(1) if not (path := parent / (stem if n == 1 else f"{stem}_{n}")).exists())
