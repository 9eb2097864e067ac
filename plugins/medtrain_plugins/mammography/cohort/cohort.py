"""Cohorts: a table of mammograms, read, checked row by row and matched with its image files.

Nothing is repaired silently. Rows and images that cannot be used are counted by kind and reported together or, on
request, dropped with the counts in `Cohort.about`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from medtrain.data import read_table
from medtrain.errors import ConfigError, DataError, first_lines
from medtrain.protocols import GROUPS

from medtrain_plugins.mammography.cohort.images import read_header
from medtrain_plugins.mammography.cohort.labels import N_YEARS, label_problems
from medtrain_plugins.mammography.cohort.layouts import (
    EMBED_NAME,
    EMBED_PATTERN,
    FOLDERS,
    LATERALITIES,
    UNKNOWN,
    VIEWS,
    Layout,
    find_columns,
)

LABELS = ["years_to_cancer", "years_to_followup"]
EXAMPLES = 3  # places named per kind of problem
FURTHER = "factor_"  # columns with this prefix are kept as text: risk factors for Mirai


@dataclass(frozen=True)
class Cohort:
    """A checked cohort.

    table: one row per image, sorted by patient, exam, side, view and file name, with the columns `image_path`,
    `file_name`, `patient_id` and `exam_id` (text), `exam_date` (EMBED only) and `exam_year`, `laterality` (L, R),
    `view` (CC, MLO), `years_to_cancer` and `years_to_followup` (float, NaN = empty cell), `density` (1..4 = A..D),
    `cancer_type`, `race` (EMBED only; index into `layouts.RACES`), -1 = unknown, `group` (train, validation, test, or
    None if the cohort is not split), and the table's columns `factor_<name>` as text. layout: "embed" or "csaw". about:
    counts, for the run directory (JSON).
    """

    table: pd.DataFrame
    layout: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> list[str]:
        """The existing groups, in the order train, validation, test; empty if the cohort is not split."""
        found = set(self.table["group"].dropna())
        return [name for name in GROUPS if name in found]

    def group(self, name: str) -> Cohort:
        """The rows of one group."""
        return replace(self, table=self.table[self.table["group"] == name].reset_index(drop=True))


class Problems:
    """The problems of a cohort: counts by kind, and the first places of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}

    def add(self, kind: str, places: Iterable[str]) -> None:
        """Counts `places`, texts such as "cohort.csv:7 (laterality is 'X')", under `kind`."""
        for place in places:
            self.counts[kind] += 1
            named = self.places.setdefault(kind, [])
            if len(named) < EXAMPLES:
                named.append(place)

    def lines(self) -> list[str]:
        return [f"{kind}: {self.counts[kind]}, first: {'; '.join(self.places[kind])}" for kind in self.counts]


def read_cohort(
    table: str | Path,
    images: str | Path | None = None,
    layout: str = "auto",
    columns: Mapping[str, str] | None = None,
    on_bad_rows: Literal["error", "drop"] = "error",
) -> Cohort:
    """Reads and checks a cohort: every row, and the header of every image.

    table: a CSV file (comma, semicolon or tab), or a folder that holds exactly one. images: the folder of the images,
    or of `train`, `val` and `test` with the images; default: the folder of the table. layout: "embed", "csaw" or
    "auto". columns: canonical name -> column, for tables with other names. on_bad_rows: "error" raises one error for
    all bad rows; "drop" leaves them out and counts them. Raises DataError (also, whatever `on_bad_rows`, for a patient
    in two groups and an empty group), ConfigError.
    """
    if on_bad_rows not in ("error", "drop"):
        raise ConfigError(f"on_bad_rows: {on_bad_rows!r} is neither 'error' nor 'drop'")
    table = _find_table(Path(table))
    raw = read_text(table)
    try:
        spec, mapping = find_columns(list(raw.columns), layout, columns or {})
    except DataError as error:
        raise DataError(f"{table}: {error}") from None
    files = list_images(table.parent if images is None else Path(images))

    problems = Problems()
    rows, not_understood = _read_rows(raw, spec, mapping, table.name, problems)
    if spec.name == "embed":
        by_name = files["file_name"].str.extract(f"^{EMBED_NAME.pattern}$")
        unnamed = by_name["patient_id"].isna()
        problems.add(f"file name is not {EMBED_PATTERN}", files["image_path"][unnamed])
        files = files.join(by_name)[~unnamed]
        has_dates = rows["exam"].str.len().max() > 4  # some tables have only the year
        files["exam"] = files["date"] if has_dates else files["date"].str[:4]
        key = ["patient_id", "laterality", "view", "exam"]
    else:
        key = ["file_name"]
    groups = set(files["group"].dropna())
    matched = _match(rows, files, key, table.name, problems)
    matched = _check_groups(matched, table.name, problems)
    matched = _check_images(matched, problems)
    matched = _check_views(matched, table.name, problems)

    if problems.counts and on_bad_rows == "error":
        raise DataError(
            f"{table}: {sum(problems.counts.values())} problems in {len(rows)} rows and {len(files)} images\n"
            + first_lines(problems.lines(), limit=20)
            + '\nMend the table or the images, or set on_bad_rows = "drop" to go on without them.'
        )
    emptied = sorted(groups - set(matched["group"].dropna()))
    if matched.empty or emptied:
        left = f"group {' and '.join(emptied)} has" if emptied else "the cohort has"
        raise DataError(f"{table}: {left} no usable image left\n" + first_lines(problems.lines(), limit=20))
    cohort = _cohort(matched, spec, table)
    cohort.about.update(table=table.name, **_facts(cohort))
    cohort.about.update(dropped=dict(problems.counts), not_understood=not_understood)
    return cohort


def list_images(folder: Path) -> pd.DataFrame:
    """The PNG files of a folder, or of its folders `train`, `val` (or `validation`) and `test`, sorted by name.

    Returns the columns `file_name`, `image_path` and `group` (None without such folders). Raises DataError if the
    folder, or one of the three, has none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images; name it with --images")
    subfolders = [folder / name for name in FOLDERS if (folder / name).is_dir()]
    loose = _png_names(folder)
    if subfolders and loose:
        raise DataError(
            f"{folder}: {len(loose)} images, such as {loose[0]}, lie beside the folders "
            f"{', '.join(sub.name for sub in subfolders)}; move them into one, or away"
        )
    found: list[tuple[str, str, str | None]] = []
    for sub in subfolders or [folder]:
        names = _png_names(sub)
        if not names:
            raise DataError(f"{sub}: no PNG image in this folder; add its images, or remove the folder")
        found += [(name, str(sub / name), FOLDERS.get(sub.name) if subfolders else None) for name in names]
    return pd.DataFrame(found, columns=["file_name", "image_path", "group"], dtype=object)


def _png_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.lower().endswith(".png"))


def _find_table(path: Path) -> Path:
    if not path.is_dir():
        return path
    tables = sorted(path.glob("*.csv"))
    if len(tables) != 1:
        found = ", ".join(table.name for table in tables) or "none"
        raise DataError(f"{path}: one CSV table is needed in this folder, found {found}; name the file itself")
    return tables[0]


def read_text(table: Path) -> pd.DataFrame:
    """The table as `read_table` reads it; it must have rows."""
    raw = read_table(table)
    if raw.empty:
        raise DataError(f"{table}: the table has no rows")
    return raw


def _read_rows(
    raw: pd.DataFrame, layout: Layout, mapping: Mapping[str, str], table: str, problems: Problems
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Typed rows with `line` and `bad`, and the number of cells in coded columns with an unknown code."""
    text = pd.DataFrame({name: raw[column] for name, column in mapping.items()})
    rows = pd.DataFrame({"line": text.index, "bad": False}, index=text.index)

    def refuse(kind: str, wrong: pd.Series, describe: pd.Series) -> None:
        problems.add(kind, (f"{table}:{line} ({describe[line]})" for line in wrong.index[wrong]))
        rows["bad"] |= wrong

    rows["patient_id"] = text["patient_id"].str.replace(r"\.0$", "", regex=True)
    refuse("no patient", rows["patient_id"] == "", f"{mapping['patient_id']} is '" + text["patient_id"] + "'")
    for name, known in (("laterality", LATERALITIES), ("view", VIEWS)):
        rows[name] = text[name].str.upper().map(known)
        refuse(f"unknown {name}", rows[name].isna(), f"{mapping[name]} is '" + text[name] + "'")

    exam = text["exam"].str.replace(r"\.0$", "", regex=True)
    is_year = exam.str.fullmatch(r"(19|20)\d\d")
    dates = pd.to_datetime(exam.where(~is_year), format="ISO8601", errors="coerce")
    if layout.name == "csaw":
        refuse("unknown exam year", ~is_year, f"{mapping['exam']} is '" + text["exam"] + "'")
        rows["exam"] = exam
    else:
        mixed = is_year & (is_year.sum() < len(is_year))
        refuse("unparsable date", (dates.isna() & ~is_year) | mixed, f"{mapping['exam']} is '" + text["exam"] + "'")
        rows["exam"] = dates.dt.strftime("%Y-%m-%d").where(~is_year, exam)

    reasons = pd.Series(label_problems(list(text[LABELS[0]]), list(text[LABELS[1]])), index=text.index, dtype=object)
    refuse("impossible years", reasons.notna(), reasons)
    for name in LABELS:
        rows[name] = pd.to_numeric(text[name], errors="coerce")

    not_understood: dict[str, int] = {}
    for name, codes in layout.codes.items():
        empty = layout.missing.get(name, UNKNOWN)
        if name not in text:
            rows[name] = empty
            continue
        cells = text[name].str.upper().str.split().str.join(" ").str.replace(r"\.0$", "", regex=True)
        found = cells.map({**codes, "": empty})
        if found.isna().any():
            not_understood[mapping[name]] = int(found.isna().sum())
        rows[name] = found.fillna(UNKNOWN).astype("int64")

    if "split" in text:
        rows["split"] = text["split"].str.lower().map(FOLDERS)
        refuse("unknown split", rows["split"].isna(), f"{mapping['split']} is '" + text["split"] + "'")
    if layout.name == "csaw":
        rows["file_name"] = text["file_name"]
    for column in map(str, raw.columns):
        if column.startswith(FURTHER):
            rows[column] = raw[column]
    return rows, not_understood


def _match(rows: pd.DataFrame, files: pd.DataFrame, key: list[str], table: str, problems: Problems) -> pd.DataFrame:
    """The images with the row of their `key`, without bad ones.

    Several images of one key (a view taken twice on a day) share a row, or have one row each with equal values.
    """
    keyed = rows.dropna(subset=key)
    places = table + ":" + keyed["line"].astype(str)
    counted = keyed[key].merge(files.groupby(key).size().rename("images").reset_index(), on=key, how="left")
    images = counted["images"].fillna(0).set_axis(keyed.index)

    values = [name for name in keyed.columns if name not in {"line", "bad"}]
    differs = keyed.duplicated(key, keep=False) & ~keyed.duplicated(values, keep=False)
    contradicted = pd.MultiIndex.from_frame(keyed[key]).isin(pd.MultiIndex.from_frame(keyed.loc[differs, key]))
    surplus = (keyed.groupby(key).cumcount() >= images.clip(lower=1)) & ~contradicted
    problems.add("contradictory rows", places[contradicted])
    problems.add("duplicate row", places[surplus])
    kind = "missing file" if key == ["file_name"] else "row without image"
    lost = (images == 0) & ~surplus & ~contradicted
    names = keyed.loc[lost, key].itertuples(index=False, name=None)
    problems.add(kind, (f"{place} ({'_'.join(name)})" for place, name in zip(places[lost], names, strict=True)))

    keyed = keyed.assign(bad=keyed["bad"] | contradicted).drop_duplicates(key)
    matched = files.merge(keyed, on=key, how="left")
    problems.add("image without row", matched["image_path"][matched["bad"].isna()])
    return matched[matched["bad"].eq(False)].reset_index(drop=True)


def _check_groups(matched: pd.DataFrame, table: str, problems: Problems) -> pd.DataFrame:
    """Groups from the folders, else from the split column; the two must agree."""
    if "split" not in matched:
        return matched
    wrong = matched["group"].notna() & (matched["group"] != matched["split"])
    lines = matched["line"].astype(int).astype(str)
    problems.add(
        "split and folder disagree",
        table + ":" + lines[wrong] + " (" + matched["split"][wrong] + ", but " + matched["image_path"][wrong] + ")",
    )
    return matched.assign(group=matched["group"].fillna(matched["split"]))[~wrong]


def _check_images(matched: pd.DataFrame, problems: Problems) -> pd.DataFrame:
    """Removes images that are not 16-bit gray PNG, or have another size than most."""
    sizes: dict[str, tuple[int, int]] = {}
    for path in matched["image_path"]:
        try:
            header = read_header(path)
        except DataError as error:
            problems.add("unreadable image", [str(error)])
            continue
        if problem := header.problem():
            kind = f"{header.bits}-bit image" if header.colour == "gray" else "colour image"
            problems.add(kind, [f"{path} ({problem})"])
            continue
        sizes[path] = (header.height, header.width)
    if sizes:
        usual, _ = Counter(sizes.values()).most_common(1)[0]
        for path, size in list(sizes.items()):
            if size != usual:
                most = f"most have {usual[0]} x {usual[1]}"
                problems.add("wrong size", [f"{path} ({size[0]} rows x {size[1]} columns, {most})"])
                del sizes[path]
    return matched[matched["image_path"].isin(sizes.keys())]


def _check_views(matched: pd.DataFrame, table: str, problems: Problems) -> pd.DataFrame:
    """Removes breasts whose images of one exam have different labels."""
    breast = matched.groupby(["patient_id", "exam", "laterality"])
    differ = pd.Series(False, index=matched.index)
    for name in LABELS:
        differ |= breast[name].transform(lambda values: values.nunique(dropna=False)) > 1
    lines = matched["line"].astype(int).astype(str)
    problems.add("views of one breast with different years", table + ":" + lines[differ])
    return matched[~differ]


def _cohort(matched: pd.DataFrame, layout: Layout, table: Path) -> Cohort:
    """The canonical table, sorted. Raises DataError for patients in two groups."""
    if layout.name == "embed":
        # The file name has the full date, also if the table has only the year.
        dates = matched["file_name"].str.extract(f"^{EMBED_NAME.pattern}$")["date"]
        matched = matched.assign(exam=dates, exam_date=pd.to_datetime(dates))
    matched = matched.assign(
        exam_year=matched["exam"].str[:4].astype("int64"), exam_id=matched["patient_id"] + "_" + matched["exam"]
    )
    order = ["patient_id", "exam", "laterality", "view", "file_name", "image_path"]
    matched = matched.sort_values(order).reset_index(drop=True)

    groups = matched.groupby("patient_id")["group"].agg(lambda names: sorted(set(names.dropna())))
    leaked = [f"patient {patient}: {' and '.join(names)}" for patient, names in groups.items() if len(names) > 1]
    if leaked:
        raise DataError(
            f"{table}: a patient may be in one group only; in several: {len(leaked)}\n" + first_lines(leaked)
        )
    shown = ["image_path", "file_name", "patient_id", "exam_id", "exam_date", "exam_year", "laterality", "view"]
    shown += [*LABELS, "density", "cancer_type", "race", "group"]
    shown += [name for name in map(str, matched.columns) if name.startswith(FURTHER)]
    return Cohort(table=matched[[name for name in shown if name in matched]], layout=layout.name)


def _facts(cohort: Cohort) -> dict[str, Any]:
    """Counts of a cohort and of its groups."""

    def count(rows: pd.DataFrame) -> dict[str, int]:
        cases = rows.loc[rows["years_to_cancer"] < N_YEARS + 1, "patient_id"]
        return {
            "images": len(rows),
            "exams": rows["exam_id"].nunique(),
            "patients": rows["patient_id"].nunique(),
            "patients_with_cancer": cases.nunique(),
        }

    groups = {name: count(cohort.group(name).table) for name in cohort.groups}
    repeats = int(cohort.table.duplicated(["exam_id", "laterality", "view"]).sum())
    return {"layout": cohort.layout, **count(cohort.table), "repeated_views": repeats, "groups": groups}
