"""File types in a tree of brain images, and the presets of BIDS and Clinica's CAPS."""

from __future__ import annotations

import re
from typing import Any, Literal

from medtrain.config import SectionModel
from medtrain.errors import ConfigError, nearest
from pydantic import ConfigDict, Field, ValidationError, field_validator

ANY = ".*"
_EXTENSIONS = (".nii.gz", ".nii")


class FileType(SectionModel):
    """Files by the parts of their BIDS name, such as `sub-01_ses-M000_space-MNI_T1w.nii.gz`.

    Values of entities are regular expressions that the whole value must match; `.*` is any value.
    """

    model_config = ConfigDict(frozen=True)

    suffix: str = Field(description="last part of the name before the extension, for example T1w")
    datatype: str = Field(
        default="", description="folder in the session's, for example anat; a path of several is fine"
    )
    extension: tuple[str, ...] = Field(default=_EXTENSIONS, description="of which one must end the name")
    with_entities: dict[str, str] = Field(
        default={}, description="parts the name must have, for example {space = 'MNI.*'}"
    )
    without_entities: dict[str, str] = Field(default={}, description="parts the name must not have")
    pipeline: str = Field(default="", description="folder under derivatives/ of the tree; default: the tree itself")
    dimensions: Literal[3, 4] = Field(default=3, description="3: volumes; 4: series, whose volumes become channels")

    @field_validator("extension", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("with_entities", "without_entities")
    @classmethod
    def _patterns(cls, value: dict[str, str]) -> dict[str, str]:
        for entity, pattern in value.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{entity}: {pattern!r} is no regular expression ({error})") from None
        return value

    def matches(self, datatype: str, name: str) -> bool:
        """Whether a file with this name, in this folder of its session, has this type."""
        extension = next((end for end in self.extension if name.endswith(end)), None)
        if extension is None:
            return False
        *parts, suffix = name.removesuffix(extension).split("_")
        if suffix != self.suffix:
            return False
        if self.datatype and datatype != self.datatype and not datatype.endswith(f"/{self.datatype}"):
            return False
        found = dict(part.split("-", 1) for part in parts if "-" in part)
        has = (
            entity in found and re.fullmatch(pattern, found[entity]) for entity, pattern in self.with_entities.items()
        )
        has_not = (
            entity in found and re.fullmatch(pattern, found[entity])
            for entity, pattern in self.without_entities.items()
        )
        return all(has) and not any(has_not)

    def describe(self) -> str:
        """A short description of the file's name, for messages."""
        entities = "".join(f"_{name}-{pattern}" for name, pattern in self.with_entities.items())
        folder = f"{self.datatype}/" if self.datatype else ""
        return f"{folder}*{entities}_{self.suffix}{{{','.join(self.extension)}}}"


_MNI = {"space": "MNI152NLin2009cSym", "res": "1x1x1"}


def _linear(suffix: str, cropped: bool = True, **entities: str) -> FileType:
    """An image that a linear pipeline of Clinica registered to the template, cropped or not."""
    crop = {"desc": "Crop"}
    return FileType(
        suffix=suffix,
        datatype={"T1w": "t1_linear", "FLAIR": "flair_linear", "pet": "pet_linear"}[suffix],
        with_entities=_MNI | entities | (crop if cropped else {}),
        without_entities={} if cropped else crop,
    )


def pet_linear(
    tracer: str = ANY, region: str = ANY, reconstruction: str | None = None, cropped: bool = True
) -> FileType:
    """PET of Clinica's pet-linear. tracer: as 18FFDG; region: of reference for the uptake, as pons2."""
    entities = {"trc": tracer, "suvr": region} | ({} if reconstruction is None else {"rec": reconstruction})
    return _linear("pet", cropped, **entities)


def dwi_dti(
    measure: Literal["FA", "MD", "AD", "RD"] = "FA", space: Literal["normalized", "native"] = "normalized"
) -> FileType:
    """A map of Clinica's dwi-dti: fractional anisotropy, or mean, axial, radial diffusivity."""
    entities = {"space": "MNI152Lin", "res": "1x1x1"} if space == "normalized" else {"space": "b0|T1w"}
    folder = f"dwi/dti_based_processing/{space}_space"
    return FileType(suffix=measure, datatype=folder, with_entities=entities)


# Raw images may have several versions (rec-, run-, echo-, part-); with_entities chooses one.
PRESETS: dict[str, FileType] = {
    "T1w": FileType(suffix="T1w", datatype="anat"),
    "T2w": FileType(suffix="T2w", datatype="anat"),
    "FLAIR": FileType(suffix="FLAIR", datatype="anat"),
    "PET": FileType(suffix="pet", datatype="pet"),
    "DWI": FileType(suffix="dwi", datatype="dwi", dimensions=4),
    "Segmentation": FileType(suffix="dseg", datatype="anat", pipeline="segmentation"),
    "T1Linear": _linear("T1w"),
    "T1LinearUncropped": _linear("T1w", cropped=False),
    "FlairLinear": _linear("FLAIR"),
    "FlairLinearUncropped": _linear("FLAIR", cropped=False),
    "PetLinear": pet_linear(),
    "PetLinearUncropped": pet_linear(cropped=False),
    "DwiDti": dwi_dti(),
}


def as_file_type(given: FileType | dict[str, Any] | str, where: str = "file_type") -> FileType:
    """A file type from a preset's name (`T1Linear`, `t1-linear`), a table, or a table that changes a preset.

    `{"preset": "PetLinear", "with_entities": {"trc": "18FFDG"}}` adds to the preset's entities. where: the key that
    errors name. Raises ConfigError.
    """
    if isinstance(given, FileType):
        return given
    table: dict[str, Any] = {"preset": given} if isinstance(given, str) else dict(given)
    values: dict[str, Any] = {}
    if "preset" in table:
        name = str(table.pop("preset"))
        preset = {_plain(known): kind for known, kind in PRESETS.items()}.get(_plain(name))
        if preset is None:
            known = ", ".join(PRESETS)
            raise ConfigError(f"{where}: there is no preset {name!r}{nearest(name, PRESETS)}; known: {known}")
        values = preset.model_dump()
        for entities in ("with_entities", "without_entities"):
            table[entities] = values[entities] | table.get(entities, {})
    try:
        return FileType.model_validate(values | table)
    except ValidationError as error:
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        place = ".".join(map(str, (where, *first["loc"])))
        raise ConfigError(
            f"{place}: {first['msg']}; known here: {', '.join(('preset', *FileType.model_fields))}"
        ) from None


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
