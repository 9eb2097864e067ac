"""Sample predictions of the validation group: images, and a table of outputs and targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from medtrain.data import collate as default_collate
from medtrain.protocols import evaluation_mode, move_batch

if TYPE_CHECKING:
    from medtrain import Run
    from torch.utils.tensorboard import SummaryWriter

SMALLEST = 8  # pixels: a tensor with a smaller last dimension is not an image
LONGEST = 12  # largest number of values of one output in the table
CHANNELS = 4  # channels shown side by side


def write_samples(writer: SummaryWriter, run: Run, count: int, inputs: bool) -> None:
    """Writes predictions for the first `count` validation samples, one at a time, so that memory suffices as in
    training.

    inputs: also write the images of the batch.
    """
    dataset = None if run.data is None else run.data.validation
    if run.data is None or run.network is None or dataset is None:
        return
    collate = run.data.collate or default_collate
    rows = []
    with evaluation_mode(run.network), torch.no_grad():
        for number in range(min(count, len(dataset))):
            batch = move_batch(collate([dataset[number]]), run.device)
            outputs = run.network(batch)
            row = {"sample": str(batch["sample_id"][0])}
            for name, value in tensors(batch):
                row |= short(name, value)
                if inputs and (image := picture(value)) is not None:
                    writer.add_image(f"samples/{number}/{name}", image, run.step)
            for name, value in tensors(outputs):
                row |= short(f"output {name}", value)
                if (image := picture(value)) is not None:
                    writer.add_image(f"samples/{number}/output_{name}", image, run.step)
            rows.append(row)
    writer.add_text("samples/predictions", table(rows), run.step)


def tensors(values: Any, at: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in a batch, also in dicts inside it, as `outer/inner`."""
    if isinstance(values, torch.Tensor):
        yield at, values
    elif isinstance(values, Mapping):
        for name, value in values.items():
            yield from tensors(value, f"{at}/{name}" if at else str(name))


def short(name: str, value: torch.Tensor) -> dict[str, str]:
    """The values of the first sample, if they are few."""
    flat = value[0].flatten() if value.dim() else value.flatten()
    if value.dim() > 2 or not 0 < len(flat) <= LONGEST:
        return {}
    return {name: ", ".join(f"{number:.4g}" for number in flat.double().tolist())}


def picture(value: torch.Tensor) -> torch.Tensor | None:
    """The first image of (B, C, H, W), or the middle slice of (B, C, D, H, W), as (3, H, W') within 0 to 1.

    Three channels are colours, others stand side by side.
    """
    if value.dim() not in (4, 5) or min(value.shape[-2:]) < SMALLEST or value.is_complex():
        return None
    image = value[0].detach().float().cpu().nan_to_num(0.0, 0.0, 0.0)
    if image.dim() == 4:
        image = image[:, image.shape[1] // 2]
    low, high = image.min(), image.max()
    image = (image - low) / (high - low).clamp(min=1e-12)
    if len(image) != 3:
        image = torch.cat(list(image[:CHANNELS]), dim=-1).expand(3, -1, -1)
    return image


def table(rows: list[dict[str, str]]) -> str:
    """Rows as a Markdown table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([row.get(name, "") for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
