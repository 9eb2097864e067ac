"""Brain images of a BIDS or CAPS tree as samples: which images there are, their problems, and how they are read."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from medtrain.data import cache_dir as default_cache
from medtrain.errors import ConfigError, DataError, first_lines
from torch import Tensor

from medtrain_plugins.brain.data.bids import KEYS, Tree, Visit, order, read_tsv, with_ids
from medtrain_plugins.brain.data.cache import DiskCache, Kind, MemoryCache, Source, open_cache
from medtrain_plugins.brain.data.caps import FileType, as_file_type
from medtrain_plugins.brain.data.cohort import Cohort, times
from medtrain_plugins.brain.data.extraction import VolumePart, cut, find_parts
from medtrain_plugins.brain.data.transforms import Pipeline, Step, as_options
from medtrain_plugins.brain.data.volumes import Header, orient, read_stored, scale, voxel_size
from medtrain_plugins.brain.options import ExtractionOptions

log = logging.getLogger("medtrain")

Array = npt.NDArray[Any]
Task = Literal["classification", "regression", "segmentation", "reconstruction"]
Exclude = Literal["strict", "skip"]
CacheKind = Literal["none", "memory", "disk"]

_BINS = 4  # bins of a continuous column, for balanced splits
_CONTINUOUS = 10  # a column of numbers with more values than this is continuous


class BidsDataset:
    """One image of every session, or parts of it, as dicts:

    `sample_id` (participant and session, and the part's name), `participant_id`, `session_id`; `image` float32
    (C, D, H, W), axes as in the file (or `canonical`: to the right, front and up), slices (C, H, W); `spacing` float32,
    the size of a voxel in mm along each axis of the image; for labelled classification `label` () int64, for regression
    () float32; with masks, `mask` int64 of the image's shape with one channel. Parts also have `image_id`, `position`
    (3,) int64, the first voxel, which padding may put beyond the border, and `image_shape` (3,) int64. Each of
    `columns` comes as float32, or as text where it is text.

    bids: folder of the tree. file_type, masks: a preset's name or a table, see `caps.as_file_type`. data: table (path,
    or rows as a DataFrame or dict of columns) with `participant_id` and perhaps `session_id`, which chooses and
    describes the sessions; default: all of the tree. Other columns come from the tree's tables. label: the column to
    predict. class_names: its values in the order of classes; default: all values, sorted. stratify: columns that splits
    balance; default: the label, if it is a class. extraction: table of `ExtractionOptions`. transforms: of MONAI,
    applied once, before the cache and the extraction. augmentations: of MONAI, drawn for every training sample from
    torch's generator; `evaluation()` is the same dataset without them. cache: keep transformed images in "memory", or
    on "disk" in `cache_dir`. exclude: "strict" raises one DataError with everything that cannot be used; "skip" leaves
    it out and lists it in `about`. non_finite: for voxels that are NaN or infinite, "error" or "zero".

    Also: `sample_ids`, `participants`, `sessions`, `strata`, `labels`, `classes`, one per sample; `about`, for the run
    directory.
    """

    def __init__(
        self,
        bids: str | Path,
        file_type: FileType | dict[str, Any] | str = "T1w",
        data: str | Path | pd.DataFrame | dict[str, list[Any]] | None = None,
        label: str | None = None,
        task: Task = "classification",
        columns: Sequence[str] | None = None,
        masks: FileType | dict[str, Any] | str | None = None,
        class_names: Sequence[str] | None = None,
        stratify: Sequence[str] | None = None,
        extraction: ExtractionOptions | dict[str, Any] | None = None,
        transforms: Sequence[Step] | None = None,
        augmentations: Sequence[Step] | None = None,
        cache: CacheKind = "none",
        cache_dir: str | Path | None = None,
        exclude: Exclude = "strict",
        canonical: bool = False,
        non_finite: Literal["error", "zero"] = "error",
    ) -> None:
        kind = as_file_type(file_type)
        mask_kind = None if masks is None else as_file_type(masks, "masks")
        if task == "segmentation" and mask_kind is None:
            raise ConfigError("masks: segmentation needs the file type of the masks")
        # Arguments from which the dataset can be rebuilt, as text and numbers.
        self.bids, self.file_type = str(bids), kind.model_dump(mode="json")
        self.masks = None if mask_kind is None else mask_kind.model_dump(mode="json")
        if isinstance(data, pd.DataFrame):
            data = data.to_dict("list")  # type: ignore[assignment]
        self.data: Any = str(data) if isinstance(data, Path) else data
        self.label, self.task, self.exclude, self.cache = label, task, exclude, cache
        self.columns, self.stratify = list(columns or ()), list(stratify or ())
        options = extraction if isinstance(extraction, ExtractionOptions) else ExtractionOptions(**(extraction or {}))
        self.extraction = options.model_dump(mode="json")
        self.transforms = [step.model_dump(mode="json") for step in as_options(transforms or ())]
        self.augmentations = [step.model_dump(mode="json") for step in as_options(augmentations or ())]
        self.canonical, self.non_finite = canonical, non_finite

        self._options = options
        self._before = Pipeline(self.transforms) if self.transforms else None
        self._after = Pipeline(self.augmentations, random=True, where="augmentations") if self.augmentations else None
        for pipeline in (self._before, self._after):
            if pipeline is not None:
                pipeline.check()
        tree = Tree(self.bids)
        cohort = Cohort(
            tree,
            kind,
            mask_kind,
            self._rows(tree),
            self._needed(),
            everyone=data is None,
            alike=not self.transforms and options.kind != "patch",
        )
        problems = list(cohort.problems.values())
        if problems and exclude == "strict":
            raise DataError(
                f"{self.bids}: {len(problems)} problems with the images of {len(cohort.rows)} sessions; repair "
                'them, choose sessions by a table, or leave them out with exclude = "skip"\n' + first_lines(problems)
            )
        if not cohort.paths:
            raise DataError(f"{self.bids}: no session has an image to use ({kind.describe()})\n{first_lines(problems)}")
        if cohort.problems:
            log.warning(
                "%s: %d sessions left out:\n%s",
                self.bids,
                len(cohort.problems),
                first_lines(list(cohort.problems.values())),
            )
        self._images, self._masks, self._headers = cohort.paths, cohort.mask_paths, cohort.headers
        self._spacings = [voxel_size(self._affine(row)) for row in range(len(self._headers))]
        rows = cohort.usable
        self._visits = [Visit(*keys) for keys in rows[KEYS].itertuples(index=False)]
        self._values = self._columns(rows)
        self.class_names = self._name_classes(rows, class_names)
        self._labels = self._label_values(rows)

        self.cache_dir = None if cache_dir is None and cache != "disk" else str(cache_dir or self._default_folder())
        self._last: tuple[int, dict[str, Array]] | None = None
        self._cache: MemoryCache | DiskCache | None = None
        self._index()
        self._cache = self._open_cache()

        strata = self._strata(rows)
        self.sample_ids = [
            str(self._visits[row]) + (f"_{place.name}" if place else "")
            for row, place in zip(self._row_of, self._place_of, strict=True)
        ]
        self.participants = [self._visits[row].participant_id for row in self._row_of]
        self.sessions = [self._visits[row].session_id for row in self._row_of]
        self.strata = [strata[row] for row in self._row_of]
        self.labels = None if self._labels is None else self._labels[self._row_of].tolist()
        self.classes: list[int] | None = self.labels if task == "classification" else None
        self.deterministic = self._after is None
        self.about = self._describe(cohort)

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        row, place = self._row_of[index], self._place_of[index]
        visit = self._visits[row]
        sample: dict[str, Any] = {
            "sample_id": self.sample_ids[index],
            "participant_id": visit.participant_id,
            "session_id": visit.session_id,
        }
        arrays = self._arrays(row, part=place is not None)
        spacing = arrays.get("spacing", self._spacings[row])
        arrays = {key: array for key, array in arrays.items() if key != "spacing"}
        if place is not None:
            shape = next(iter(arrays.values())).shape[1:]
            sample["image_id"] = str(visit)
            sample["position"], sample["image_shape"] = torch.tensor(place.start), torch.tensor(shape)
            arrays = {key: cut(array, place, self._options, labels=key == "mask") for key, array in arrays.items()}
        for key, array in arrays.items():
            sample[key] = _tensor(array, np.int64 if key == "mask" else np.float32)
        if sample["image"].dim() == 3:  # a slice has two axes
            spacing = np.delete(spacing, self._options.direction)
        sample["spacing"] = _tensor(spacing, np.float32)
        if self._labels is not None:
            sample["label"] = self._labels[row]
        for name, values in self._values.items():
            sample[name] = values[row]
        if self._after is not None:
            sample = self._after(sample, seed=int(torch.randint(2**62, ())))
        return sample

    def evaluation(self) -> BidsDataset:
        """The same samples, and the same cache, without augmentations."""
        plain = copy.copy(self)
        plain.augmentations, plain._after, plain.deterministic = [], None, True
        return plain

    def affine(self, index: int) -> Array:
        """The affine (4, 4) of a sample's image before transforms, of the whole image for parts."""
        return self._affine(self._row_of[index])

    # --- the samples

    def _rows(self, tree: Tree) -> pd.DataFrame:
        """The requested sessions, in order, with the columns of the tables."""
        if self.data is None:
            return tree.table()
        if isinstance(self.data, str):
            table, where = read_tsv(self.data, KEYS[:1]), self.data
        else:
            table, where = pd.DataFrame(self.data), "data"
            table = with_ids(table.set_axis(range(2, len(table) + 2)), KEYS[:1], where)
        if "session_id" not in table:
            table = tree.table()[KEYS].merge(table, on="participant_id", how="right")
            missing = table["session_id"].isna()
            table.loc[missing, "session_id"] = "ses-?"
        repeated = table[table.duplicated(KEYS)]
        if len(repeated):
            first = "_".join(repeated[KEYS].iloc[0])
            raise DataError(f"{where}: {len(repeated)} sessions have several rows, such as {first}")
        visits = [Visit(*keys) for keys in table[KEYS].itertuples(index=False)]
        ranks = sorted(range(len(table)), key=lambda row: order(visits[row]))
        return tree.join(table.iloc[ranks].reset_index(drop=True))

    def _needed(self) -> list[str]:
        return list(dict.fromkeys([*([self.label] if self.label else []), *self.stratify, *self.columns]))

    def _index(self) -> None:
        """The parts of every image: `_row_of` and `_place_of`, one per sample."""
        self._row_of: list[int] = []
        self._place_of: list[VolumePart | None] = []
        if self._options.kind == "image":
            self._row_of, self._place_of = list(range(len(self._visits))), [None] * len(self._visits)
            return
        known: dict[tuple[int, ...], list[VolumePart]] = {}
        for row in range(len(self._visits)):
            shape = self._kinds(row)["image"].shape[1:]
            if shape not in known:
                known[shape] = find_parts(self._options, shape)  # type: ignore[arg-type]
            self._row_of += [row] * len(known[shape])
            self._place_of += known[shape]

    def _columns(self, rows: pd.DataFrame) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in self.columns:
            numbers = pd.to_numeric(rows[name], errors="coerce")
            if numbers.notna().all():
                values[name] = torch.tensor(numbers.to_numpy(np.float32, copy=True))
            else:
                values[name] = [cell_text(value) for value in rows[name]]
        return values

    def _name_classes(self, rows: pd.DataFrame, given: Sequence[str] | None) -> list[str] | None:
        if self.label is None or self.task != "classification":
            return None if given is None else list(given)
        found = sorted({cell_text(value) for value in rows[self.label]}, key=_number_first)
        names = [str(name) for name in given] if given is not None else found
        if strange := [name for name in found if name not in names]:
            raise DataError(
                f"{self.bids}: {self.label} has the value {strange[0]!r}; the classes are {', '.join(names)}"
            )
        return names

    def _label_values(self, rows: pd.DataFrame) -> Tensor | None:
        if self.label is None or self.task not in ("classification", "regression"):
            return None
        if self.task == "classification":
            assert self.class_names is not None
            return torch.tensor([self.class_names.index(cell_text(value)) for value in rows[self.label]])
        numbers = pd.to_numeric(rows[self.label], errors="coerce")
        if not (finite := np.isfinite(numbers)).all():
            raise DataError(f"{self.bids}: {self.label} is not a finite number: {rows[self.label][~finite].iloc[0]!r}")
        return torch.tensor(numbers.to_numpy(np.float32, copy=True))

    def _strata(self, rows: pd.DataFrame) -> list[Any]:
        """The strata of each image for balanced splits: the values of some columns, numbers in four bins."""
        names = self.stratify or ([self.label] if self.label and self.task == "classification" else [])
        parts = [["0"] * len(rows)] if not names else []
        for name in names:
            numbers = pd.to_numeric(rows[name], errors="coerce")
            if numbers.notna().all() and numbers.nunique() > _CONTINUOUS:
                parts.append([str(bin) for bin in pd.qcut(numbers, _BINS, labels=False, duplicates="drop")])
            else:
                parts.append([cell_text(value) for value in rows[name]])
        return [" ".join(values) for values in zip(*parts, strict=True)]

    def _describe(self, cohort: Cohort) -> dict[str, Any]:
        shapes = Counter(header.shape for header in self._headers)
        about: dict[str, Any] = {
            "bids": self.bids,
            "file_type": self.file_type,
            "participants": len({visit.participant_id for visit in self._visits}),
            "images": len(self._visits),
            "samples": len(self),
            "shapes": {times(shape): count for shape, count in shapes.most_common(5)},
            "excluded": list(cohort.problems.values()),
        }
        if self.label is not None:
            about |= {"label": self.label, "task": self.task}
        if self.class_names is not None and self.classes is not None:
            about["classes"] = self.class_names
            counts = Counter(self.class_names[int(label)] for label in self._labels)  # type: ignore[union-attr]
            about["images_by_class"] = {name: counts[name] for name in self.class_names}
        return about

    # --- reading

    def _arrays(self, row: int, part: bool = False) -> dict[str, Array]:
        """The transformed arrays of a row, from the cache or from its files. part: return a part of this array only."""
        keys = self._keys
        if self._cache is not None:
            found = {key: self._cache.get(len(keys) * row + number) for number, key in enumerate(keys)}
            if all(array is not None for array in found.values()):
                return found  # type: ignore[return-value]
        elif part and self._last is not None and self._last[0] == row:
            return self._last[1]
        arrays = self._read(row)
        if isinstance(self._cache, MemoryCache):
            for number, key in enumerate(keys):
                self._cache.put(len(keys) * row + number, arrays[key])
        elif part and self._cache is None:
            self._last = row, arrays
        return arrays

    def _read(self, row: int) -> dict[str, Array]:
        """The image (C, D, H, W), as stored or float32, and the mask (1, D, H, W) of a row, from their files.

        With transforms, `spacing` (3,) is the resulting size of voxels.
        """
        header = self._headers[row]
        arrays = {"image": self._volume(self._images[row], header)}
        if self._masks:
            arrays["mask"] = _integers(self._volume(self._masks[row], None), self._masks[row])
        if self._before is None:
            return arrays
        sample = {"image": _tensor(arrays["image"], np.float32)}
        if "mask" in arrays:
            sample["mask"] = _tensor(arrays["mask"], arrays["mask"].dtype)
        try:
            changed, affine = self._before.with_affine(sample, self._affine(row))
        except DataError as error:
            raise DataError(f"{self._images[row]}: {error}") from None
        if changed["image"].dim() != 4:
            raise ConfigError(
                f"transforms: they make images of shape {tuple(changed['image'].shape)}, not (C, D, H, W)"
            )
        return {key: value.numpy() for key, value in changed.items()} | {"spacing": voxel_size(affine)}

    def _affine(self, row: int) -> Array:
        header = self._headers[row]
        return orient(np.empty(header.shape[:3]), header.affine).affine if self.canonical else header.affine

    def _volume(self, path: str, known: Header | None) -> Array:
        stored, header = read_stored(path, known)
        stored = stored.reshape(header.spatial(self.file_type["dimensions"] if known is not None else 3), order="F")
        if self.canonical:
            stored = orient(stored, header.affine).array
        values = scale(stored, header) if header.scaled else stored
        if values.dtype.kind == "f" and not np.isfinite(values.sum(dtype=np.float64)):
            bad = ~np.isfinite(values)
            if bad.any():
                if self.non_finite == "error":
                    raise DataError(
                        f'{path}: {int(bad.sum())} voxels are NaN or infinite; repair it, or set non_finite = "zero"'
                    )
                values = np.where(bad, values.dtype.type(0), values)
        native = values.dtype.newbyteorder("=")
        # float64 would be cast for the network in any case.
        native = np.dtype(np.float32) if native.kind == "f" and native.itemsize > 4 else native
        channels_first = values[None] if values.ndim == 3 else np.moveaxis(values, 3, 0)
        return np.ascontiguousarray(channels_first, native)

    def look_at(self, row: int) -> str | None:
        """Decodes an image and its mask completely; returns the problem of their voxels, or None."""
        try:
            arrays = self._read(row)
        except DataError as error:
            return str(error)
        image = arrays["image"]
        if image.min() == image.max():
            return f"{self._images[row]}: the image is blank, every voxel is {image.flat[0]}"
        if "mask" in arrays and not arrays["mask"].any():
            return f"{self._masks[row]}: the mask is empty"
        return None

    # --- the cache

    @property
    def _keys(self) -> tuple[str, ...]:
        """The cached arrays of a row. Without transforms the spacing comes from the header."""
        return ("image", *(("mask",) if self._masks else ()), *(("spacing",) if self._before else ()))

    def _kinds(self, row: int) -> dict[str, Kind]:
        """The shapes and types of a row's arrays: from its header or, with transforms, from the first image."""
        if self._before is not None:
            if not hasattr(self, "_probed"):
                self._probed = {key: Kind(array.shape, array.dtype.str) for key, array in self._read(0).items()}
            return self._probed
        header = self._headers[row]
        shape = header.spatial(self.file_type["dimensions"])
        if self.canonical:
            shape = orient(np.empty(shape[:3], np.uint8), header.affine).array.shape + shape[3:]
        shape = (1, *shape) if len(shape) == 3 else (shape[3], *shape[:3])
        dtype = header.dtype.newbyteorder("=")
        wide = header.scaled or (dtype.kind == "f" and dtype.itemsize > 4)
        return {"image": Kind(shape, "<f4" if wide else dtype.str), "mask": Kind((1, *shape[1:]), "|u1")}

    def _open_cache(self) -> MemoryCache | DiskCache | None:
        keys = self._keys
        if self.cache == "memory":
            return MemoryCache([self._kinds(row)[key] for row in range(len(self._visits)) for key in keys])
        if self.cache == "none":
            return None
        read: tuple[int, dict[str, Array]] = -1, {}

        def make(number: int) -> Array:
            nonlocal read
            row, key = divmod(number, len(keys))
            if read[0] != row:
                read = row, self._read(row)
            return read[1][keys[key]]

        sources = []
        for row, visit in enumerate(self._visits):
            files = (self._images[row], self._masks[row]) if self._masks else (self._images[row],)
            # With transforms, the mask may depend on the image, and the image on the mask.
            sources += [Source(f"{visit}/{key}", files) for key in keys]
        assert self.cache_dir is not None
        return open_cache(self.cache_dir, sources, self._settings(), make)

    def _settings(self) -> dict[str, Any]:
        """Everything that cached arrays depend on, besides the files."""
        names = ("transforms", "canonical", "non_finite")
        return {name: getattr(self, name) for name in names} | {"dimensions": self.file_type["dimensions"]}

    def _default_folder(self) -> Path:
        identity = [str(Path(self.bids).resolve()), self.file_type, self.masks, self._settings()]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return default_cache() / f"brain-{digest}"


def _integers(mask: Array, path: str) -> Array:
    """Labels (1, D, H, W) in the smallest integer type; raises DataError for values that are not labels."""
    rounded = np.rint(mask)
    if mask.dtype.kind == "f" and not np.array_equal(rounded, mask):
        raise DataError(f"{path}: the mask has values that are not whole numbers; it seems to have been interpolated")
    if rounded.min(initial=0) < 0:
        raise DataError(f"{path}: the mask has negative labels")
    return rounded.astype(np.uint8 if rounded.max(initial=0) < 256 else np.int32)


def _tensor(array: Array, dtype: Any) -> Tensor:
    """A contiguous copy as a tensor."""
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def cell_text(value: Any) -> str:
    """A cell of a table as text; whole numbers without the decimals that pandas gave them."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _number_first(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text
