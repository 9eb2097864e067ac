"""Options of the section `computational` as the arithmetic sees them: compiled, laid out, skipped by DDP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain import Data, TensorModel, Trainer, hookimpl
from medtrain.rundir import Maps
from safetensors.torch import load_file
from torch import nn
from torch.multiprocessing import ProcessRaisedException
from toy_plugin import Vectors


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "split-0" / "last" / "model.safetensors")


def history(run: Path) -> list[dict[str, Any]]:
    return Maps.open(run).split(0).history()


class TellsWhetherItIsCompiled(nn.Module):
    """Its logits are one weight, and tripled where torch compiles it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.weight * (3.0 if torch.compiler.is_compiling() else 1.0) + 0.0 * features[:, :3]


class Compiled:
    @hookimpl
    def build_model(self) -> nn.Module:
        return TensorModel(TellsWhetherItIsCompiled(), input="features")

    @hookimpl
    def build_loss(self) -> Any:
        return lambda outputs, batch: outputs["logits"].mean()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.acceptance)])
def test_training_goes_through_torch_compile(
    trainer: Callable[..., Trainer],
    forked: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
) -> None:
    """Traced by the real torch.compile; the C++ compiler of its default backend alone takes 20 s."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    losses = []
    for compiled in ("true", "false"):
        changes = ("optimization.num_epochs=1", "optimization.learning_rate=1e-9", "optimization.weight_decay=0")
        made = trainer(compiled, *changes, f"computational.compile={compiled}", callbacks=[Compiled()])
        forked(made.train)
        losses.append(history(tmp_path / compiled)[0]["train/loss"])
        assert list(weights(tmp_path / compiled)) == ["weight"]
    assert losses == pytest.approx([3.0, 1.0])


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether channels lie innermost in memory, and only so."""
    layout = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
    return tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous()


class Images:
    """Eight images or volumes of three channels."""

    def __init__(self, dimensions: int) -> None:
        self.sample_ids = [f"image-{number}" for number in range(8)]
        self.participants = [f"sub-{number}" for number in range(8)]
        self.pixels = torch.randn(8, 3, *[4] * dimensions, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.pixels[index], "sample_id": self.sample_ids[index]}


class WatchesLayouts(nn.Module):
    """Two convolutions that note how batch and kernels lie in memory, in training and in evaluation."""

    def __init__(self, dimensions: int, seen: dict[tuple[bool, str], set[bool]]) -> None:
        super().__init__()
        convolution: Any = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.first, self.second, self.seen = convolution(3, 4, 3), convolution(4, 2, 2), seen

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tensors = {"batch": image, "first": self.first.weight, "second": self.second.weight}
        for name, tensor in tensors.items():
            self.seen.setdefault((self.training, name), set()).add(is_channels_last(tensor))
        logits: torch.Tensor = self.second(self.first(image))
        return logits


class Layouts:
    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.seen: dict[tuple[bool, str], set[bool]] = {}

    @hookimpl
    def build_data(self) -> Data:
        return Data(whole=Images(self.dimensions))

    @hookimpl
    def build_model(self) -> nn.Module:
        return TensorModel(WatchesLayouts(self.dimensions, self.seen))

    @hookimpl
    def build_loss(self) -> Any:
        return lambda outputs, batch: outputs["logits"].square().mean()

    @hookimpl
    def build_metrics(self) -> list[Any]:
        return []


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("wanted", ["channels_last", "contiguous"])
def test_batches_and_weights_lie_in_the_memory_format(
    trainer: Callable[..., Trainer], dimensions: int, wanted: str
) -> None:
    """In every step of training and evaluation, also after a resume; a checkpoint does not depend on it."""
    first, again = Layouts(dimensions), Layouts(dimensions)
    changes = (f"computational.memory_format={wanted}", "data.batch_size=2")
    path = trainer("run", *changes, callbacks=[first]).train().maps
    Trainer.from_maps(path, callbacks=[again], assignments=["optimization.num_epochs=3"]).resume()
    names = ("batch", "first", "second")
    always = {(training, name): {wanted == "channels_last"} for training in (True, False) for name in names}
    assert first.seen == again.seen == always
    assert not any(is_channels_last(tensor) for tensor in weights(path).values() if tensor.dim() > 1)


class SkipsAPart(nn.Module):
    """A second layer only for samples whose first feature is large; a batch without such a sample skips it."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.rarely = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.always(features)
        large = features[:, 0] > 1.0
        if large.any():
            logits = logits + large[:, None] * self.rarely(features)
        return logits


class Skipping:
    @hookimpl
    def build_model(self) -> nn.Module:
        return TensorModel(SkipsAPart(), input="features")


def test_parts_that_a_batch_skips_need_find_unused_parameters(
    trainer: Callable[..., Trainer], forked: Callable[..., None], tmp_path: Path
) -> None:
    """With it two processes, one of which skips the part now and then, train as one; without it DDP refuses."""
    skipped = [not bool(batch[:, 0].gt(1).any()) for batch in Vectors(0, 23).features.split(2)]
    assert 0 < sum(skipped) < len(skipped)
    changes = ("data.sampling=sequential", "optimization.learning_rate=0.05")
    refused = trainer("refused", *changes, "data.batch_size=2", callbacks=[Skipping()])
    with pytest.raises(ProcessRaisedException, match="find_unused_parameters=True"):
        forked(refused.train, ranks=2)
    found = ("data.batch_size=2", "computational.find_unused_parameters=true")
    forked(trainer("two", *changes, *found, callbacks=[Skipping()]).train, ranks=2)
    trainer("one", *changes, "data.batch_size=4", callbacks=[Skipping()]).train()
    two, one = weights(tmp_path / "two"), weights(tmp_path / "one")
    for name, value in one.items():
        assert torch.allclose(two[name], value, atol=1e-6), name
    for record, expected in zip(history(tmp_path / "two"), history(tmp_path / "one"), strict=True):
        assert record == pytest.approx(expected, abs=1e-6)
