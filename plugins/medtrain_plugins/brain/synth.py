"""A synthetic BIDS tree: heads of several sites and sessions, with or without signs of the diagnosis in the anatomy.

Diagnosis, sex, age and site are assigned independently, so only the images depend on the diagnosis:

- `atrophy`: the ventricles are wider, the cortex is thinner and the hippocampi are smaller, increasingly from session
  to session. Ventricles widen a little with age in everyone.
- `trivial`: one half of the brain is darker.
- `shepp_logan`: an ellipsoid phantom in which two ellipsoids are smaller.

With the signal `none` all images are those of participants without the disease. Sites differ in voxel size, brightness,
shading and noise. A derivative `segmentation` has the tissues of each image.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from medtrain.errors import UsageError
from medtrain.rundir import new_folder

from medtrain_plugins.brain.data.bids import DESCRIPTION

Array = npt.NDArray[np.float32]
Head = tuple[Array, npt.NDArray[np.uint8]]
Variant = Literal["atrophy", "trivial", "shepp_logan"]
Signal = Literal["diagnosis", "none"]
VARIANTS: tuple[str, ...] = get_args(Variant)

SETTINGS = "synthesis.json"
PIPELINE = "segmentation"
TISSUES = {1: "cerebrospinal fluid", 2: "gray matter", 3: "white matter"}
# Brightness of outside, fluid, gray matter, white matter, scalp.
_BRIGHTNESS = np.array([0.02, 0.15, 0.55, 0.85, 0.65], dtype=np.float32)
_MONTHS = 6  # months between two sessions
_CORTEX = 0.24  # thickness, as part of the brain's radius
_FIELD = 180.0  # millimetres along each axis


@dataclass(frozen=True)
class Participant:
    """A drawn participant. width: of the ventricles, cortex: its thickness, both as factors."""

    name: str
    ill: bool
    sex: str
    age: float
    site: int
    width: float
    cortex: float
    hippocampus: float
    axes: tuple[float, float, float]
    seed: tuple[int, int, int]

    def at(self, months: int, signal: Signal) -> tuple[float, float, float]:
        """Factors of ventricles, cortex and hippocampi at a session; those of a healthy participant without a
        signal.
        """
        width = self.width * (1 + 0.004 * (self.age + months / 12 - 72))
        if not self.ill or signal == "none":
            return width, self.cortex, self.hippocampus
        progress = 1 + months / 120
        return (
            width * (1 + 0.55 * progress),
            self.cortex * (1 - 0.35 * progress),
            self.hippocampus * (1 - 0.3 * progress),
        )


@dataclass(frozen=True)
class Scanner:
    """The properties of a site. shading: coefficients of a plane of brightness."""

    gain: float
    noise: float
    shading: tuple[float, float, float]
    stretch: tuple[float, float, float]

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Scanner:
        return cls(
            generator.uniform(600, 1400),
            generator.uniform(0.01, 0.03),
            _three(generator.uniform(-0.1, 0.1, 3)),
            _three(generator.uniform(0.95, 1.05, 3)),
        )


def _three(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z


def synthesize(
    out: str | Path,
    participants: int = 120,
    *,
    sessions: int = 2,
    sites: int = 3,
    size: int = 32,
    seed: int = 0,
    variant: Variant = "atrophy",
    signal: Signal = "diagnosis",
) -> dict[str, int]:
    """Writes a BIDS tree to the folder `out`; returns the numbers of `participants`, `ill` ones, and `images`.

    size: voxels along each axis, at least 12. Equal settings give equal files. The tree is written completely or not at
    all; an earlier synthetic one is replaced. Raises UsageError for invalid settings, and for a folder with other
    content.
    """
    settings = {
        "participants": participants,
        "sessions": sessions,
        "sites": sites,
        "size": size,
        "seed": seed,
        "variant": variant,
        "signal": signal,
    }
    _check(settings)
    out = Path(out)
    _refuse_foreign(out)
    people = draw_participants(participants, sites, seed)
    scanners = [Scanner.draw(np.random.default_rng([seed, 2, site])) for site in range(sites)]
    with new_folder(out, replace=True, sync=False) as tree:
        _write_tables(tree, people, sessions, settings)
        for person in people:
            for visit in range(sessions):
                _write_visit(tree, person, scanners[person.site], visit, size, variant, signal)
    return {
        "participants": participants,
        "ill": sum(person.ill for person in people),
        "images": participants * sessions,
    }


def draw_participants(count: int, sites: int, seed: int) -> list[Participant]:
    """The participants; half of them are ill, equally at every site."""
    people = []
    for number in range(count):
        # Assigned by number, so that every site has equal numbers of both diagnoses; all else is independent of them.
        site, ill = number % sites, (number // sites) % 2 == 1
        generator = np.random.default_rng([seed, 1, number])
        sex = str(generator.choice(["F", "M"]))
        age = float(np.clip(generator.normal(72, 7), 55, 90))
        width, cortex, hippocampus = np.exp(generator.normal(0, 0.08, 3)).tolist()
        people.append(
            Participant(
                name=f"sub-{chr(65 + site % 26)}{number + 1:04d}",
                ill=ill,
                sex=sex,
                age=age,
                site=site,
                width=width,
                cortex=cortex,
                hippocampus=hippocampus,
                axes=_three(generator.uniform(0.95, 1.05, 3)),
                seed=(seed, 3, number),
            )
        )
    return people


def draw_head(person: Participant, months: int, size: int, variant: Variant, signal: Signal) -> Head:
    """Brightness (size, size, size) in 0..1 without the scanner's effects, and tissues (0 for none)."""
    if variant == "shepp_logan":
        return _shepp_logan(person, size, signal)
    ventricles, cortex, hippocampus = person.at(months, signal if variant == "atrophy" else "none")
    x, y, z = _grid(size, person.axes)
    # Distances from the centre in units of the outer brain surface, which is slightly folded.
    radius = np.sqrt((x / 0.68) ** 2 + (y / 0.82) ** 2 + (z / 0.66) ** 2)
    folds = 0.03 * np.sin(11 * x + 3 * person.width) * np.sin(9 * y + 5 * person.cortex) * np.sin(10 * z)
    depth = 1 - radius - folds
    tissues = np.zeros(radius.shape, dtype=np.uint8)
    tissues[(radius < 1.22) & (radius > 1.1)] = 4
    tissues[(radius < 1.1) & (depth > -0.06)] = 1
    tissues[depth > _CORTEX * (1 - cortex)] = 2
    tissues[depth > _CORTEX] = 3
    for side in (-1, 1):
        horn = ((x - 0.13 * side) / 0.09) ** 2 + ((y + 0.02) / 0.34) ** 2 + ((z - 0.06) / 0.14) ** 2
        tissues[horn < ventricles ** (4 / 3)] = 1
        seahorse = ((x - 0.34 * side) / 0.09) ** 2 + ((y - 0.02) / 0.2) ** 2 + ((z + 0.24) / 0.09) ** 2
        tissues[seahorse < 1.6] = 1
        tissues[seahorse < 1.6 * hippocampus**2] = 2
    light = _BRIGHTNESS[tissues]
    if variant == "trivial" and person.ill and signal == "diagnosis":
        light = np.where((x > 0) & (radius < 1), 0.6 * light, light)
    tissues[tissues == 4] = 0
    return light.astype(np.float32), tissues


def _shepp_logan(person: Participant, size: int, signal: Signal) -> Head:
    """Nested and scattered ellipsoids; two of them are smaller in ill participants."""
    small = 0.72 if person.ill and signal == "diagnosis" else 1.0
    # Brightness added, half axes, centre, whether it shrinks.
    ellipsoids = [
        (0.9, (0.69, 0.92, 0.81), (0, 0, 0), False),
        (-0.6, (0.66, 0.87, 0.78), (0, -0.02, 0), False),
        (-0.2, (0.11, 0.31, 0.22), (0.22, 0, 0), True),
        (-0.2, (0.16, 0.41, 0.28), (-0.22, 0, 0), True),
        (0.25, (0.21, 0.25, 0.41), (0, 0.35, -0.15), False),
        (0.3, (0.08, 0.08, 0.1), (0, 0.1, 0.25), False),
        (0.3, (0.08, 0.08, 0.1), (0, -0.1, 0.25), False),
        (0.3, (0.08, 0.05, 0.08), (-0.08, -0.6, 0), False),
        (0.3, (0.08, 0.05, 0.08), (0.06, -0.6, 0), False),
    ]
    x, y, z = _grid(size, person.axes)
    light = np.full(x.shape, 0.02, dtype=np.float32)
    tissues = np.zeros(x.shape, dtype=np.uint8)
    for number, (added, (a, b, c), (at_x, at_y, at_z), shrinks) in enumerate(ellipsoids):
        factor = small * person.width if shrinks else 1.0
        inside = ((x - at_x) / a) ** 2 + ((y - at_y) / b) ** 2 + ((z - at_z) / c) ** 2 < factor**2
        light[inside] += added
        tissues[inside] = 1 if shrinks else 2 if number == 0 else 3 if number == 1 else tissues[inside]
    return light, tissues


def _grid(size: int, axes: tuple[float, float, float]) -> list[Array]:
    """Positions along right, front and up (size, size, size): half the field is 1, in a head of these proportions."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    return list(np.meshgrid(*(line / np.float32(axis) for axis in axes), indexing="ij"))


def _write_visit(
    tree: Path, person: Participant, scanner: Scanner, visit: int, size: int, variant: Variant, signal: Signal
) -> None:
    months = visit * _MONTHS
    session = session_name(visit)
    light, tissues = draw_head(person, months, size, variant, signal)
    generator = np.random.default_rng([*person.seed, visit])
    x, y, z = _grid(size, (1, 1, 1))
    shading = 1 + sum(s * axis for s, axis in zip(scanner.shading, (x, y, z), strict=True))
    noisy = light * shading + scanner.noise * generator.standard_normal(light.shape, dtype=np.float32)
    pixels = np.clip(noisy * scanner.gain * generator.uniform(0.95, 1.05), 0, 32767).astype(np.int16)
    affine = np.diag([_FIELD / size * stretch for stretch in scanner.stretch] + [1.0])
    affine[:3, 3] = -np.diag(affine)[:3] * (size - 1) / 2 + generator.normal(0, 2, 3)
    stem = f"{person.name}_{session}"
    folder = Path(person.name) / session / "anat"
    _write_nifti(tree / folder / f"{stem}_T1w.nii.gz", pixels, affine)
    _write_nifti(tree / "derivatives" / PIPELINE / folder / f"{stem}_dseg.nii.gz", tissues, affine)


def _write_nifti(path: Path, array: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> None:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    # Without the time and name that nibabel would write, so that equal settings give equal files.
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def session_name(visit: int) -> str:
    """`ses-M000`, `ses-M006`, `ses-M012`, ..."""
    return f"ses-M{visit * _MONTHS:03d}"


def _write_tables(tree: Path, people: list[Participant], sessions: int, settings: dict[str, Any]) -> None:
    derivative = tree / "derivatives" / PIPELINE
    derivative.mkdir(parents=True)
    about = {"Name": "Synthetic brain images", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    _write_json(tree / DESCRIPTION, about | {"GeneratedBy": [{"Name": "medtrain data synth brain"}]})
    by = {"GeneratedBy": [{"Name": "medtrain data synth brain"}]}
    _write_json(derivative / DESCRIPTION, about | {"Name": "Tissues", "DatasetType": "derivative"} | by)
    labels = [f"{number}\t{name}" for number, name in TISSUES.items()]
    _write_lines(derivative / "dseg.tsv", ["index\tname", *labels])
    _write_json(tree / SETTINGS, settings)
    _write_lines(
        tree / "participants.tsv",
        ["participant_id\tsex\tage\tsite\tdiagnosis"]
        + [f"{p.name}\t{p.sex}\t{p.age:.1f}\t{_site(p)}\t{_diagnosis(p)}" for p in people],
    )
    for person in people:
        rows = [
            f"{session_name(v)}\t{person.age + v * _MONTHS / 12:.1f}\t{_diagnosis(person)}" for v in range(sessions)
        ]
        _write_lines(tree / person.name / f"{person.name}_sessions.tsv", ["session_id\tage\tdiagnosis", *rows])


def _site(person: Participant) -> str:
    return f"site{chr(65 + person.site % 26)}"


def _diagnosis(person: Participant) -> str:
    return "AD" if person.ill else "CN"


def _write_json(path: Path, values: dict[str, Any]) -> None:
    _write_lines(path, [json.dumps(values, indent=2)])


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _check(settings: dict[str, Any]) -> None:
    for name, least, most in (("participants", 2, 9999), ("sessions", 1, 100), ("sites", 1, 26), ("size", 12, 512)):
        if not least <= settings[name] <= most:
            raise UsageError(f"--{name} {settings[name]}: must lie in {least}..{most}")
    if settings["seed"] < 0:
        raise UsageError(f"--seed {settings['seed']}: must not be negative")
    for name, known in (("variant", VARIANTS), ("signal", get_args(Signal))):
        if settings[name] not in known:
            raise UsageError(f"--{name} {settings[name]}: must be one of {', '.join(known)}")


def _refuse_foreign(out: Path) -> None:
    """An earlier synthetic tree may be replaced; anything else may not."""
    if out.is_file():
        raise UsageError(f"{out}: a file is in the way; name another folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / SETTINGS).is_file():
        raise UsageError(f"{out}: not empty, and no synthetic tree (no {SETTINGS}); name another folder with --out")
