"""From Hounsfield units to the network's input: one transform, stored with the run and used again at inference.

The window is fixed. The volume's own minimum and maximum are not used: a piece of metal must not darken the lungs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from medtrain.errors import ConfigError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Intensity:
    """Clips to `window` (HU) and maps it linearly to `target`; raises ConfigError for empty or infinite ranges."""

    window: tuple[float, float] = (-1000.0, 400.0)
    target: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("window", "target"):
            given = getattr(self, name)
            try:
                low, high = (float(value) for value in given)
            except (TypeError, ValueError):
                raise ConfigError(f"intensity {name} {given!r}: give two numbers, lower and upper") from None
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ConfigError(f"intensity {name} {given!r}: the first number must be below the second")
            object.__setattr__(self, name, (low, high))

    def __call__(self, hu: npt.ArrayLike) -> Array:
        """HU of any shape -> float32 of that shape within `target`."""
        low, high = self.window
        bottom, top = self.target
        given = np.asarray(hu)
        if given.dtype != np.int16 or not (low.is_integer() and high.is_integer() and -32768 <= low < high <= 32767):
            given = given.astype(np.float32)
        clipped = np.clip(
            given, given.dtype.type(low), given.dtype.type(high)
        )  # whole HU stay integers: half the memory
        values: Array = np.subtract(clipped, np.float32(low), dtype=np.float32, order="C")
        values *= np.float32((top - bottom) / (high - low))
        if bottom:
            values += np.float32(bottom)
        return values

    def to_hu(self, values: npt.ArrayLike) -> Array:
        """The inverse within the window, for figures: float32 HU."""
        low, high = self.window
        bottom, top = self.target
        return ((np.asarray(values, dtype=np.float32) - bottom) * ((high - low) / (top - bottom)) + low).astype(
            np.float32
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON; `from_dict` takes it back."""
        return {name: list(values) for name, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Intensity:
        """The inverse of `as_dict`. Raises ConfigError for unknown keys."""
        unknown = set(stored) - {"window", "target"}
        if unknown:
            raise ConfigError(f"intensity: unknown keys {', '.join(sorted(unknown))}; it has window and target")
        return cls(**{name: tuple(values) for name, values in stored.items()})
