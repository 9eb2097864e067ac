"""A small cohort on disk: rows and images that tests change before they are written."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (32, 24)


@dataclass
class CohortFiles:
    """rows of the table and images by relative path; `write` puts them on disk and returns the table's path."""

    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def table(self) -> Path:
        return self.folder / "cohort.csv"

    def write(self) -> Path:
        for name, pixels in self.images.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        with self.table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        return self.table


def noise(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, size, dtype=np.uint16)
