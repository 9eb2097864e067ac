"""MammoRegNet trained for a moment on images moved by a known displacement: it must find that displacement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from medtrain_plugins.mammo_reg_net.losses import RegistrationLoss
from medtrain_plugins.mammo_reg_net.metrics import ncc, ncc_before, negative_jacobian
from medtrain_plugins.mammo_reg_net.model import PairRegistration
from medtrain_plugins.mammo_reg_net.plots import overlay_figure
from medtrain_plugins.mammography.cohort.images import read_image
from medtrain_plugins.mammography.model.registration import MammoRegNet, spatial_transform
from medtrain_plugins.mammography.synthetic.phantom import Shape, Tissue, breast
from PIL import Image
from torch import Tensor

REAL = Path(__file__).parents[4] / "shared" / "data" / "mammograms"


def phantoms(count: int, size: tuple[int, int]) -> Tensor:
    """Breasts in both views, (count, 1, H, W)."""
    rng = np.random.default_rng(0)
    shape = Shape(depth=0.55, reach=0.4, nipple=0.5, droop=0.34, axilla=0.5, muscle=(0.5, 0.3))
    drawn = [breast(shape, ("CC", "MLO")[i % 2], Tissue.draw(rng, size), density=2) for i in range(count)]
    return torch.from_numpy(np.stack(drawn)).unsqueeze(1)


def moved(images: Tensor, flow: Tensor) -> dict[str, Tensor]:
    """A batch of pairs whose true flow is `flow`: where the previous image shows what the current one does."""
    return {"current_image": spatial_transform(images, flow), "previous_image": images}


def train(model: PairRegistration, batches: Iterable[dict[str, Tensor]], steps: int, learning_rate: float) -> None:
    """Adam, its learning rate falling to zero along a line."""
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=learning_rate), RegistrationLoss()
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 1 / steps, total_iters=steps)
    for batch in islice(batches, steps):
        optimizer.zero_grad()
        torch.stack([*loss(model(batch), batch).values()]).sum().backward()
        optimizer.step()
        schedule.step()


def mean_flow(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Mean displacement (2,) over the breasts."""
    tissue = batch["current_image"][:, 0] > 0.05
    return torch.stack([outputs["flow"][:, channel][tissue].mean() for channel in (0, 1)])


@pytest.mark.parametrize(("axis", "pixels"), [(0, 3), (1, -3)])
def test_a_known_shift_is_found_along_its_axis_with_its_sign(axis: int, pixels: int) -> None:
    """Tissue that lies `pixels` further down (right) than before is found as much further up (left) in the prior."""
    previous = phantoms(4, (48, 32))
    current = previous.roll(pixels, dims=2 + axis)
    current.narrow(2 + axis, 0 if pixels > 0 else pixels, abs(pixels)).zero_()
    batch = {"previous_image": previous, "current_image": current}
    torch.manual_seed(0)
    model = PairRegistration(MammoRegNet())
    train(model, repeat(batch), steps=24, learning_rate=1e-3)
    with torch.no_grad():
        outputs = model(batch)
    found = mean_flow(outputs, batch)
    assert found[axis] == pytest.approx(-pixels, abs=1)
    assert abs(found[1 - axis]) < 1
    assert (ncc(outputs, batch) > ncc_before(outputs, batch) + 0.02).all()
    assert (negative_jacobian(outputs, batch) < 1).all()


def smooth_flow(shift: Tensor, generator: torch.Generator, size: tuple[int, int]) -> Tensor:
    """Displacements (B, 2, H, W) in pixels: a shift (B, 2) each, and a bend of about a pixel that varies slowly."""
    coarse = torch.randn(len(shift), 2, 5, 4, generator=generator)
    bend = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=True)
    return shift[:, :, None, None] + bend


@pytest.mark.acceptance
@pytest.mark.timeout(600)
def test_known_warps_of_real_mammograms_are_found(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip("no real mammograms beside this checkout")
    size = (64, 32)
    images = torch.stack([read_image(path, size) for path in sorted(REAL.glob("*.png"))])

    def pairs(generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        while True:
            shift = (2 * torch.rand(len(images), 2, generator=generator) - 1) * torch.tensor([4.0, 3.0])
            yield moved(images, smooth_flow(shift, generator, size))

    torch.manual_seed(0)
    model = PairRegistration(MammoRegNet())
    train(model, pairs(torch.Generator().manual_seed(0)), steps=320, learning_rate=1e-3)

    unseen = torch.Generator().manual_seed(1)
    for shift in ((4.0, 0.0), (-4.0, 0.0), (0.0, 3.0), (0.0, -3.0)):
        truth = smooth_flow(torch.tensor([shift] * len(images)), unseen, size)
        batch = moved(images, truth)
        with torch.no_grad():
            outputs = model(batch)
        assert (ncc(outputs, batch) > ncc_before(outputs, batch) + 0.1).all()
        assert (negative_jacobian(outputs, batch) < 1).all()
        found, wanted = mean_flow(outputs, batch), mean_flow({"flow": truth}, batch)
        assert (found - wanted).norm() < 0.3 * wanted.norm()  # so sign and axis agree
        tissue = (batch["current_image"] > 0.05).expand(-1, 2, -1, -1)
        assert (outputs["flow"] - truth)[tissue].square().mean() < 0.2 * truth[tissue].square().mean()

    shown = [
        {
            "current": batch["current_image"][i, 0].numpy(),
            "previous": batch["previous_image"][i, 0].numpy(),
            "registered": outputs["warped"][i, 0].numpy(),
            "flow": outputs["flow"][i].numpy(),
            "title": f"image {i}",
        }
        for i in range(len(images))
    ]
    path = tmp_path / "overlays.png"
    overlay_figure(shown).savefig(path)
    picture = np.asarray(Image.open(path).convert("RGB"), dtype=float)
    assert picture.std() > 20
    assert np.abs(picture[..., 0] - picture[..., 1]).max() > 60  # what does not agree is red or cyan
