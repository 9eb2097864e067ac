"""A trained model for other tools: ONNX in float32 or with 8-bit weights, and the published checkpoint layout.

The ONNX model takes sampled clips, `input` (batch, frames, 736) float32, and gives logits, `output` (batch, classes).
Its metadata has the facts a user needs (the sign of each class, sampling and normalisation of clips), as JSON under the
key `medtrain`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from medtrain import Data, Run, __version__
from medtrain.data import sample_ids_of
from medtrain.errors import ConfigError, DataError, ExportError
from medtrain.protocols import Check
from torch import Tensor, nn

from medtrain_plugins.common.onnx_file import OPSET, open_onnx, save_onnx, write_onnx
from medtrain_plugins.sign.data.dataset import collate
from medtrain_plugins.sign.data.landmarks import CHANNELS, FEATURES, GROUPS
from medtrain_plugins.sign.data.sampling import positions, sample
from medtrain_plugins.sign.data.signs import signs_of
from medtrain_plugins.sign.model.model import SignTransformer
from medtrain_plugins.sign.options import KArSLOptions

INPUT, OUTPUT = "input", "output"
BATCH_SIZES = (1, 2, 7, 64)
TOLERANCE = 1e-4  # tolerance for logits up to 10; for larger ones, 1e-5 of the largest
CHECK_CLIPS = 1000  # largest number of clips to compare int8 and float32 on

Array = npt.NDArray[Any]


def export_signs(
    run: Run, options: KArSLOptions, format: str, path: Path, check: Check | None
) -> dict[str, Any] | None:
    """Writes the model of a run in one of three formats; None for others. Raises ExportError if a check fails."""
    model = run.model
    assert isinstance(model, SignTransformer)
    if format == "pth":
        return write_published(model, options, path)
    if format not in ("onnx", "onnx-int8"):
        return None
    about = describe(run, options, model)
    if format == "onnx":
        write_float32(model, path, about)
        told = check_equality(model, path, check)
    else:
        clips = _clips_for_accuracy(check)
        with TemporaryDirectory(dir=path.parent, prefix=".onnx-") as folder:
            float32 = Path(folder) / "float32.onnx"
            write_float32(model, float32, about)
            check_equality(model, float32, check, only_generated=True)
            quantize(float32, path, about)
            told = check_accuracy(model, float32, path, clips, check.max_drop if check else 0.0)
    facts = {"opset": OPSET, "input": [INPUT, *about["input"]["shape"]], "output": [OUTPUT, *about["output"]["shape"]]}
    return {**facts, **told}


def describe(run: Run, options: KArSLOptions, model: SignTransformer) -> dict[str, Any]:
    """The metadata of the ONNX file."""
    signs = [{"class": i, **sign._asdict()} for i, sign in enumerate(signs_of(run, options))]
    table = json.dumps(signs, sort_keys=True, ensure_ascii=False).encode()
    return {
        "plugin": "karsl",
        "model_size": options.model_size,
        "precision": "float32",
        "input": {"name": INPUT, "shape": ["batch_size", model.frames, FEATURES], "dtype": "float32"},
        "output": {"name": OUTPUT, "shape": ["batch_size", len(signs)], "dtype": "float32", "values": "logits"},
        "landmarks": {group: [rows.start, rows.stop] for group, rows in GROUPS.items()},
        "channels": ["x", "y", "z", "v"][:CHANNELS],
        "normalisation": options.normalisation,
        "sampling": {
            "frames": model.frames,
            "position": "min((i + 0.5) * length / frames, length - 1 - 1e-6), at least 0, for i = 0 .. frames - 1",
            "between_frames": "linear" if options.interpolation == "reference" else "linear where both have the group",
        },
        "signs": signs,
        "signs_sha256": hashlib.sha256(table).hexdigest(),
        "checkpoint": {"name": run.checkpoint.name if run.checkpoint else None, "epoch": run.epoch, "step": run.step},
        "versions": {"medtrain": __version__, "torch": torch.__version__, "onnx": onnx.__version__},
    }


class _Logits(nn.Module):
    """The model for other tools: a tensor in, a tensor out."""

    def __init__(self, model: SignTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, keypoints: Tensor) -> Tensor:
        return self.model.logits(keypoints)


def write_float32(model: SignTransformer, path: Path, about: dict[str, Any]) -> None:
    """Writes the model with its number of frames."""
    write_onnx(_Logits(model), torch.zeros(2, model.frames, FEATURES), path, about, INPUT, [OUTPUT])


def quantize(source: Path, path: Path, about: dict[str, Any]) -> None:
    """Writes an ONNX model whose linear layers multiply 8-bit integers; activations are scaled dynamically.

    Weights are unsigned, like activations: products of unsigned and signed bytes overflow on processors without VNNI,
    where the file would be less accurate than here.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory(dir=path.parent, prefix=".onnx-") as folder, _quiet_logging():
        made = Path(folder) / "int8.onnx"
        quantize_dynamic(source, made, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QUInt8)
        save_onnx(onnx.load(made), path, {**about, "precision": "int8 weights, float32 between layers"})


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Silences the quantizer's calls of the root logger, which would add a second handler for our later messages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def check_equality(
    model: SignTransformer, path: Path, check: Check | None, *, only_generated: bool = False
) -> dict[str, Any]:
    """Compares logits with the model's at several batch sizes, on random values and on clips of the run's data.

    Raises ExportError if one differs by more than the tolerance.
    """
    if check is None:
        return {"checked": False, "notes": ["Not compared with the trained model."]}
    running, largest, notes = open_onnx(path), 0.0, []
    sets = {"drawn values": _drawn(model)}
    if not only_generated:
        try:
            name, dataset = _group(check.data())
            clips = [keypoints for keypoints, _ in sampled(dataset, model, max(BATCH_SIZES))]
            sets[f"clips of the {name} group"] = np.concatenate(clips)
        except (DataError, ConfigError) as error:
            notes.append(f"Compared on drawn values only, not on clips: {error}")
    for what, values in sets.items():
        for size in BATCH_SIZES:
            given = values[:size]
            with torch.no_grad():
                wanted = model.logits(torch.from_numpy(given)).numpy()
            difference = float(np.abs(running.run([OUTPUT], {INPUT: given})[0] - wanted).max())
            allowed = TOLERANCE * max(1.0, float(np.abs(wanted).max()) / 10)
            if not difference <= allowed:
                raise ExportError(
                    f"the ONNX model differs from the trained one: a logit by {difference:.2g} with {len(given)} of "
                    f"{what}, more than {allowed:.1g}; nothing was written"
                )
            largest = max(largest, difference)
    sizes = ", ".join(map(str, BATCH_SIZES))
    notes.insert(0, f"Equal to the trained model within {largest:.1g} at batch sizes {sizes} ({' and '.join(sets)}).")
    return {"checked": True, "largest_difference": largest, "compared_on": list(sets), "notes": notes}


def check_accuracy(
    model: SignTransformer, float32: Path, int8: Path, clips: tuple[str, Any] | None, max_drop: float
) -> dict[str, Any]:
    """Compares top-1 of both files on a named group of clips, or on `CHECK_CLIPS` of them, evenly spread.

    The scale of 8-bit activations depends on the batch, so clips are run one by one and 64 at a time, and the smaller
    value counts. clips: None for no comparison. Raises ExportError if int8 loses more than `max_drop` percentage
    points.
    """
    sizes = {"bytes_float32": float32.stat().st_size, "bytes_int8": int8.stat().st_size}
    ratio = f"{sizes['bytes_int8'] / 1e6:,.2f} MB instead of {sizes['bytes_float32'] / 1e6:,.2f}"
    if clips is None:
        note = f"{ratio}; its accuracy was not compared with that of the trained model."
        return {**sizes, "checked": False, "notes": [note]}
    name, dataset = clips
    reference, smaller = open_onnx(float32), open_onnx(int8)
    hits = {"float32": 0, "batches": 0, "one by one": 0}
    count = 0
    for keypoints, labels in sampled(dataset, model, CHECK_CLIPS):
        singly = [_logits(smaller, keypoints[i : i + 1]) for i in range(len(keypoints))]
        answers = {
            "float32": _logits(reference, keypoints),
            "batches": _logits(smaller, keypoints),
            "one by one": np.concatenate(singly),
        }
        for way, logits in answers.items():
            hits[way] += int((np.where(np.isfinite(logits), logits, -np.inf).argmax(axis=1) == labels).sum())
        count += len(labels)
    before, after = hits["float32"] / count, min(hits["batches"], hits["one by one"]) / count
    result = f"top-1 {after:.4f} on {count} clips of the {name} group, {before:.4f} in float32"
    if 100 * (before - after) > max_drop + 1e-9:
        raise ExportError(
            f"8-bit weights lose {100 * (before - after):.2f} percentage points ({result}), more than the "
            f"{max_drop:g} that --max-drop allows; nothing was written. Use --format onnx, or allow more"
        )
    accuracy = {"group": name, "clips": count, "top1_float32": before, "top1_int8": after}
    return {**sizes, "checked": True, "accuracy": accuracy, "notes": [f"{ratio}; {result}."]}


def _clips_for_accuracy(check: Check | None) -> tuple[str, Any] | None:
    """The group to compare accuracies on; raises DataError or ConfigError with advice if there is none."""
    if check is None:
        return None
    try:
        return _group(check.data())
    except (DataError, ConfigError) as error:
        raise type(error)(
            f"the accuracy of 8-bit weights cannot be checked on the run's data; name where they are with "
            f"--set data.table=FOLDER, or give --no-check: {error}"
        ) from None


def _logits(running: onnxruntime.InferenceSession, keypoints: Array) -> Array:
    logits: Array = running.run([OUTPUT], {INPUT: keypoints})[0]
    return logits


def sampled(dataset: Any, model: SignTransformer, most: int) -> Iterator[tuple[Array, Array]]:
    """Clips as the model samples them, and their classes, in batches of 64: at most `most`, evenly spread."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int)).tolist()
    for start in range(0, len(rows), max(BATCH_SIZES)):
        batch = collate([dataset[row] for row in rows[start : start + max(BATCH_SIZES)]])
        places = positions(batch["length"], model.frames)
        keypoints = sample(batch["frames"], batch["length"], places, model.interpolation)
        yield keypoints.numpy(), batch["label"].numpy()


def _group(data: Data) -> tuple[str, Any]:
    """The group to check on: validation, else test."""
    for name in ("validation", "test"):
        dataset = getattr(data, name)
        if dataset is not None and len(sample_ids_of(dataset)):
            return name, dataset
    raise DataError("the data have neither a validation nor a test group")


def _drawn(model: SignTransformer) -> Array:
    """Clips of normal values with the means and variances of training; some lack a group, as real data do."""
    values = torch.randn(max(BATCH_SIZES), model.frames, FEATURES, generator=torch.Generator().manual_seed(0))
    norm = model.embedding.input_bn
    assert norm.running_mean is not None and norm.running_var is not None
    values = norm.running_mean + norm.running_var.sqrt() * values
    for number, rows in enumerate(GROUPS.values()):
        values[number :: 2 * len(GROUPS), :, rows.start * CHANNELS : rows.stop * CHANNELS] = 0
    return values.numpy()


def write_published(model: SignTransformer, options: KArSLOptions, path: Path) -> dict[str, Any]:
    """Writes a `.pth` with the keys model, optimizer and scheduler; the last two are empty.

    Programs for this layout read only `model`. The file does not have the number of signs or the model's size; they
    take both from the path.
    """
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    with path.open("wb") as file:  # torch would write a file name into the file
        torch.save({"model": state, "optimizer": {}, "scheduler": {}}, file)
    size = "_".join(map(str, (options.model_size[0], options.size.heads, options.size.layers)))
    numbers = options.sign_numbers
    notes = [
        f"The original tools read the number of signs and the size from the path: put the file into a folder whose "
        f"name ends in signs_{len(numbers)}_{size}.",
        "It holds the weights only; medtrain goes on with a run from its run directory.",
    ]
    if numbers != list(range(1, len(numbers) + 1)):
        notes.append(f"Classes are the signs {options.signs} in ascending order, not 1 to {len(numbers)}.")
    return {"tensors": len(state), "classes": len(numbers), "model_size": size, "notes": notes}
