"""Options of the plugin `karsl`, under their own names and under those of the original command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from medtrain.config import SectionModel, read_toml
from medtrain.errors import ConfigError
from pydantic import Field, field_validator, model_validator

from medtrain_plugins.sign.data.landmarks import MAX_SIGN

if TYPE_CHECKING:
    from medtrain import RunConfig

# Letter -> head size, heads and layers when only the letter is given.
SIZES = {"t": (16, 4, 2), "s": (32, 4, 4), "m": (64, 4, 6), "l": (128, 6, 8)}
_ALIASES = {"model_metadata": "model_size"}
# Sections that get the published values of presets/paper.toml.
SECTIONS = ("data", "optimization", "scheduler", "validation")


class ModelSize(NamedTuple):
    """The meaning of a size such as `s_4_2`."""

    head_size: int
    heads: int
    layers: int


def parse_size(text: str) -> ModelSize:
    """`<letter>_<heads>_<layers>`, or a letter alone for its preset; raises ValueError."""
    match = re.fullmatch(r"([tsml])(?:_([1-9]\d*)_([1-9]\d*))?", text)
    if match is None:
        raise ValueError("a size is a letter of t, s, m, l with heads and layers, such as s_4_2, or a letter alone")
    head_size, heads, layers = SIZES[match[1]]
    return ModelSize(head_size, int(match[2] or heads), int(match[3] or layers))


def parse_signs(text: str) -> list[int]:
    """Sign numbers of `1-502` or `1-4,7,9`, ascending, each once; raises ValueError."""
    signs: set[int] = set()
    for part in re.split(r"[,\s]+", text.strip()):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise ValueError("signs are numbers and ranges, such as 1-502 or 1-4,7,9")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= MAX_SIGN:
            raise ValueError(f"signs are numbered 1 to {MAX_SIGN}, the smaller first: not {part}")
        signs.update(range(first, last + 1))
    return sorted(signs)


class KArSLOptions(SectionModel):
    """`[plugins.karsl]`. The original flags are accepted too: `selected_signs_from`, `selected_signs_to`, `num_epochs`,
    `model_metadata`, and `signers` as text such as `01 02 03`.
    """

    signs: str = Field(f"1-{MAX_SIGN}", description="sign numbers to tell apart, such as 1-502 or 1-4,7")
    signers: list[int] = Field([], description="whose clips to use; none named: everybody's")
    hold_out_signer: int | None = Field(
        None, ge=1, description="leave one signer out: all of this one's clips are the test group, none is trained on"
    )
    normalisation: Literal["auto", "adjusted", "raw"] = Field(
        "auto", description="of the keypoints; auto: found out from the data and recorded"
    )
    labels: str = Field("", description="JSON table of the signs' names; default: the one beside the data")
    model_size: str = Field("s_4_2", description="letter (t, s, m, l), heads, layers")
    dropout: float = Field(0.5, ge=0, lt=1, description="everywhere but before the classifier")
    weights: str = Field("", description="start from these weights: .pth or safetensors file, or run directory")
    frames: int = Field(50, ge=1, le=50, description="frames sampled from each clip")
    interpolation: Literal["reference", "present"] = Field(
        "reference", description="between frames; present: never blend a missing hand with a seen one"
    )
    jitter: float = Field(0.8, ge=0, le=1, description="of the sampled times in training, as a share of their part")
    flip_p: float = Field(0.5, ge=0, le=1, description="probability of the mirror image in training")
    flip_mode: Literal["corrected", "reference"] = Field(
        "corrected", description="reference: pose and face keep their landmarks on the wrong side, as once trained"
    )
    affine_p: float = Field(0.5, ge=0, le=1, description="probability of rotation, zoom and shift in training")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the cross-entropy in training and evaluation")
    optimizer: Literal["adam", "adamw"] = Field("adam", description="adam: the decay is part of the gradient")
    num_epochs: int | None = Field(None, ge=1, description="the original flag; the same as optimization.num_epochs")
    demo_clips: int = Field(0, ge=0, description="without data: synthetic clips per sign and signer; 0 needs data")
    demo_seed: int = Field(0, ge=0, description="seed of these clips")
    demo_signal: Literal["signs", "none"] = Field("signs", description="none: clips do not depend on their sign")

    @model_validator(mode="before")
    @classmethod
    def _original_flags(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for alias, name in _ALIASES.items():
            if alias in values:
                _take(values, name, values.pop(alias), alias)
        first, last = values.pop("selected_signs_from", None), values.pop("selected_signs_to", None)
        if first is not None or last is not None:
            signs = f"{1 if first is None else first}-{MAX_SIGN if last is None else last}"
            _take(values, "signs", signs, "selected_signs_from, selected_signs_to")
        return values

    @field_validator("signs", mode="before")
    @classmethod
    def _signs_as_text(cls, value: Any) -> str:
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        parse_signs(str(value))
        return str(value)

    @field_validator("signers", mode="before")
    @classmethod
    def _signers_as_numbers(cls, value: Any) -> Any:
        if isinstance(value, int):
            value = [value]
        return [int(part) for part in re.split(r"[,\s]+", value.strip())] if isinstance(value, str) else value

    @field_validator("model_size")
    @classmethod
    def _known_size(cls, value: str) -> str:
        parse_size(value)
        return value

    @model_validator(mode="after")
    def _held_out_is_used(self) -> KArSLOptions:
        if self.hold_out_signer is not None and self.signers and self.hold_out_signer not in self.signers:
            raise ValueError(f"hold_out_signer {self.hold_out_signer} is not one of the signers {self.signers}")
        return self

    @property
    def sign_numbers(self) -> list[int]:
        """The chosen signs; a sign's position in this list is its class."""
        return parse_signs(self.signs)

    @property
    def size(self) -> ModelSize:
        """The model's size in numbers."""
        return parse_size(self.model_size)


def _take(values: dict[str, Any], name: str, value: Any, alias: str) -> None:
    if name in values and str(values[name]) != str(value):
        raise ValueError(f"{name} is {values[name]!r} and {alias} says {value!r}; give one of them")
    values[name] = value


def resolve_options(config: RunConfig, options: KArSLOptions) -> None:
    """Completes a configuration before anything is built from it or recorded.

    Keys that no preset, file or flag set get the published value, and the original flag `num_epochs` becomes
    `optimization.num_epochs`. Recorded configurations are complete, so nothing changes for a resumed run. Raises
    ConfigError if the number of epochs was given twice.
    """
    if (epochs := options.num_epochs) is not None:
        if "num_epochs" in config.optimization.model_fields_set and config.optimization.num_epochs != epochs:
            raise ConfigError(
                f"plugins.karsl.num_epochs: {epochs}, but optimization.num_epochs (--epochs) is "
                f"{config.optimization.num_epochs}; give one of them"
            )
        config.optimization.num_epochs = epochs
        options.num_epochs = None
    _, published = read_toml(Path(__file__).parent / "presets" / "paper.toml")
    for name in SECTIONS:
        section = getattr(config, name)
        for key, value in published[name].items():
            if key not in section.model_fields_set:
                setattr(section, key, value)
