"""MONAI's transforms by name, from the configuration: on images and their masks, seeded by the caller.

A transform of `monai.transforms` has the name of its class for arrays (`ScaleIntensity`, `RandAffine`). Spatial
transforms also apply to the mask, without interpolating labels. MONAI is imported when the first transform is built.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from medtrain.errors import ConfigError, DataError, nearest
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

_MOVES_VOXELS = ("monai.transforms.spatial", "monai.transforms.croppad")
_REFUSED = ("monai.transforms.io", "monai.transforms.meta_utility")
_NOT_ALLOWED = {"Lambda", "RandLambda", "TorchVision", "RandTorchVision", "TorchIO", "RandTorchIO", "ToDevice"}


class TransformOptions(BaseModel):
    """One transform: the name of a class of `monai.transforms` and its arguments."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(description="class of monai.transforms, for example NormalizeIntensity; its arguments beside it")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of its class."""
        return dict(self.model_extra or {})


Step = TransformOptions | dict[str, Any] | str
Array = npt.NDArray[Any]


def as_options(steps: Sequence[Step]) -> list[TransformOptions]:
    """Steps given as names, tables or options, all as options."""
    named = [{"name": step} if isinstance(step, str) else step for step in steps]
    return [step if isinstance(step, TransformOptions) else TransformOptions.model_validate(step) for step in named]


class Pipeline:
    """Transforms one after the other, on samples as dicts of tensors (C, D, H, W) or (C, H, W).

    steps: names or tables as in the configuration. random: whether steps may be random; if not, a random step raises
    ConfigError. where: the configuration key for error messages. images: keys of the images, which all get every step,
    with the same draws. mask: key of the labels, which get the spatial steps; it may be missing in a sample.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        random: bool = False,
        images: Sequence[str] = ("image",),
        mask: str = "mask",
        where: str = "transforms",
    ) -> None:
        self.steps, self.random, self.images, self.mask, self.where = as_options(steps), random, images, mask, where
        self._built: dict[tuple[str, ...], list[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_built": {}}

    def check(self) -> None:
        """Raises ConfigError for unknown steps, wrong arguments, and random steps that are not allowed."""
        self._steps((*self.images, self.mask))

    def __call__(self, sample: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
        """The sample with transformed images (float32) and mask (its own dtype).

        seed: determines all draws; needed if `random`.
        """
        if not self.steps:
            return sample
        return sample | {key: _plain(value) for key, value in self._changed(sample, seed).items()}

    def with_affine(self, sample: dict[str, Any], affine: Any) -> tuple[dict[str, Any], Array]:
        """The transformed sample, for images and mask with `affine` (4, 4), and the affine of the result."""
        changed = self._changed({key: _lying(sample[key], affine) for key in self._keys(sample)}, None)
        found = getattr(changed[self.images[0]], "affine", affine)
        plain = {key: _plain(value) for key, value in changed.items()}
        return sample | plain, np.asarray(found, dtype=np.float64)

    def _keys(self, sample: dict[str, Any]) -> tuple[str, ...]:
        return tuple(key for key in (*self.images, self.mask) if key in sample)

    def _changed(self, sample: dict[str, Any], seed: int | None) -> dict[str, Any]:
        """The images and the mask after all steps, as MONAI's tensors, in their dtypes."""
        keys = self._keys(sample)
        steps = self._steps(keys)
        if self.random:
            if seed is None:
                raise DataError(f"{self.where}: random transforms need a seed")
            for step, state in zip(steps, np.random.SeedSequence(seed).generate_state(len(steps)), strict=True):
                if hasattr(step, "set_random_state"):
                    step.set_random_state(seed=int(state))
        changed: Any = {key: sample[key] for key in keys}
        dtype = sample[self.mask].dtype if self.mask in keys else None
        # Before the cache, resampling and reorienting need the affine; after it, tracking it only costs time.
        with _metadata(kept=not self.random):
            for options, step in zip(self.steps, steps, strict=True):
                try:
                    changed = step(changed)
                except Exception as error:  # a transform of MONAI may raise anything
                    raise DataError(f"{self.where}: {options.name} failed: {error}") from error
                if not isinstance(changed, dict):
                    raise ConfigError(f"{self.where}: {options.name} makes several samples of one; use extraction")
        result: dict[str, Any] = {}
        for key in keys:
            value = torch.as_tensor(changed[key])
            if key == self.mask:
                result[key] = (value.round() if value.is_floating_point() else value).to(dtype)
            else:
                result[key] = value.to(torch.float32)
        return result

    def _steps(self, keys: tuple[str, ...]) -> list[Any]:
        if keys not in self._built:
            self._built[keys] = [self._build(options, keys) for options in self.steps]
        return self._built[keys]

    def _build(self, options: TransformOptions, keys: tuple[str, ...]) -> Any:
        kind, dictionary, draws, moves = _find(options.name, self.where)
        if draws and not self.random:
            raise ConfigError(f"{self.where}: {options.name} draws at random; list it under augmentations")
        if not moves:
            keys = tuple(key for key in keys if key != self.mask)
        arguments = options.arguments
        known = inspect.signature(dictionary).parameters
        taken = sorted({*known, *inspect.signature(kind).parameters} - {"keys", "allow_missing_keys", "kwargs"})
        for name in arguments:
            if name not in taken:
                raise ConfigError(
                    f"{self.where}: {options.name} has no argument {name!r}{nearest(name, taken)}; "
                    f"it takes: {', '.join(taken) or 'none'}"
                )
        if self.mask in keys and "mode" in known and kind.__module__.startswith("monai.transforms.spatial"):
            default = known["mode"].default
            mode = arguments.get("mode", "bilinear" if default is inspect.Parameter.empty else default)
            arguments["mode"] = [mode] * (len(keys) - 1) + ["nearest"]
        if "source_key" in known:
            arguments.setdefault("source_key", keys[0])
        try:
            return dictionary(keys=list(keys), **arguments)
        except Exception as error:  # as above
            raise ConfigError(f"{self.where}: {options.name} cannot be made: {error}") from error


def _find(name: str, where: str) -> tuple[type, type, bool, bool]:
    """The class, its version for dicts, whether it is random and whether it is spatial."""
    import monai.transforms as library
    from monai.transforms import MapTransform, Randomizable, Transform

    def allowed(name: str) -> bool:
        kind: Any = getattr(library, name, None)
        sister: Any = getattr(library, f"{name}d", None)
        return (
            all(isinstance(found, type) and issubclass(found, Transform) for found in (kind, sister))
            and issubclass(sister, MapTransform)
            and not issubclass(kind, MapTransform)
            and not kind.__module__.startswith(_REFUSED)
            and name not in _NOT_ALLOWED
        )

    if not allowed(name):
        known = [candidate for candidate in dir(library) if candidate[0].isupper() and allowed(candidate)]
        raise ConfigError(
            f"{where}: {name!r} is no transform of monai.transforms that can be named here{nearest(name, known)}"
        )
    kind, sister = getattr(library, name), getattr(library, f"{name}d")
    return kind, sister, issubclass(sister, Randomizable), kind.__module__.startswith(_MOVES_VOXELS)


_LOCK = threading.RLock()


@contextmanager
def _metadata(kept: bool) -> Iterator[None]:
    """MONAI's tensors with or without affine and history; this is a global setting of MONAI."""
    from monai.data.meta_obj import get_track_meta, set_track_meta

    with _LOCK:
        before = get_track_meta()
        set_track_meta(kept)
        try:
            yield
        finally:
            set_track_meta(before)


def _lying(image: Tensor, affine: Any) -> Tensor:
    """The image (C, D, H, W) as a MONAI tensor with the affine (4, 4), for resampling and reorienting."""
    from monai.data import MetaTensor

    tensor: Tensor = MetaTensor(image, affine=torch.as_tensor(affine, dtype=torch.float64))
    return tensor


def _plain(value: Any) -> Tensor:
    """A plain torch tensor, without MONAI's metadata."""
    if hasattr(value, "as_tensor"):
        value = value.as_tensor()
    return torch.as_tensor(value)


class BatchAugmentation:
    """A `medtrain.data.Augmentation`: random transforms of whole batches, on their device.

    The transform of a sample depends only on its position in the run. steps, images, mask: as for `Pipeline`.
    """

    def __init__(self, steps: Sequence[Step], images: Sequence[str] = ("image",), mask: str = "mask") -> None:
        self.pipeline = Pipeline(steps, random=True, images=images, mask=mask, where="augmentations")

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """`augmentation_seed` () int64."""
        return {"augmentation_seed": torch.randint(2**62, (), generator=generator)}

    def __call__(self, batch: dict[str, Any], draws: dict[str, Tensor]) -> dict[str, Any]:
        """The batch with transformed images and masks."""
        keys = [key for key in (*self.pipeline.images, self.pipeline.mask) if key in batch]
        seeds = draws["augmentation_seed"].tolist()
        samples = [self.pipeline({key: batch[key][i] for key in keys}, seed) for i, seed in enumerate(seeds)]
        return batch | {key: torch.stack([sample[key] for sample in samples]) for key in keys}
