"""VMRA-MaR: breast-cancer risk from the four views of a woman's last visits.

The steps are those of the paper: features of all images; a recurrent state-space network over the visits; the asymmetry
of the breasts and whether it persists; hazards. Module names are those of trained checkpoints.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from medtrain.errors import DataError
from torch import Tensor, nn

from medtrain_plugins.mammography.cohort.images import Orientation
from medtrain_plugins.mammography.model.backbone import OUT_CHANNELS, mirai_backbone
from medtrain_plugins.mammography.model.layers import Compat, CumulativeProbabilityLayer
from medtrain_plugins.mammography.model.risk_model import BaseRiskModel, Head, InputNorm, check_images
from medtrain_plugins.vmra_mar.asymmetry import PUBLISHED_MEAN, PUBLISHED_STD, Asymmetry, AsymmetryDetector, track
from medtrain_plugins.vmra_mar.vmrnn import VMRNN

VIEWS = 4  # L_CC, L_MLO, R_CC, R_MLO


class VMRAMaR(BaseRiskModel):
    """Asymmetry-aware longitudinal risk model: 21,492,302 parameters (4,635,150 trainable), 189 state-dict entries.

    forward(batch) reads `images` (B, T, 4, 1, H, W) float32 in [0, 1], H and W multiples of 32: T visits, the oldest
    first, with the views L_CC, L_MLO, R_CC, R_MLO; and, if some are missing, `exam_mask` (B, T) and `view_mask` (B, T,
    4) bool, False for a missing visit or view. Missing visits come before the first one. Missing visits and views do
    not change any result, whatever their images contain. It returns, for the T visits,

    `logit`, `probs` (B, 5): cumulative risk; `temporal_feature` (B, dim): the mean of `latent_tokens` (B, T, dim);
    `states_down`, `states_up`: [(H, C)], each (B, T, dim); `temporal_output` (B, T, dim): decoded tokens; `r_aa` (B,
    1): asymmetry over the visits; `asymmetry_scores` (B, T), `asymmetry_coords` (B, T, 2): row and column of the
    largest difference, in the left breast; `coord_valid` (B, T) bool. The last four only with asymmetry.

    compat: "fixed" compares the left with the right breast; "reference" what the published code compares, CC with MLO
    of the same breast, and treats every asymmetry as persistent, as published checkpoints were scored.
    freeze_image_encoder: freeze the encoder, with the statistics of its batch norms. input_norm: "mirai" standardises
    the encoder's input as the pretrained Mirai weights expect. orientation: of left and right breasts in the images:
    "as_is", as taken, mirrored to each other; "mirai", all with the chest wall on the right. Features of mirrored
    images are not mirrored features: for the asymmetry of images "as_is" right breasts are encoded a second time,
    mirrored (compat "fixed"). So a woman whose right breast is the mirror image of the left has an asymmetry of exactly
    0, in both. embed_dim, depth, drop_path: width, blocks and stochastic depth of the temporal network. asymmetry:
    False leaves out that branch, its parameters and outputs. latent_size, asymmetry_mean, asymmetry_std: see
    `AsymmetryDetector`, also for what the first training batch sets. threshold_ratio: largest movement of a persistent
    difference, as a share of the grid's longer side. persistent_weight: additional weight of a visit with a persistent
    asymmetry.

    No gradient reaches the decoding half of the temporal network, nor the layers that mix a hidden state into its
    second block. Checkpoints have both, so they are kept, but frozen.

    Raises DataError for images or masks of the wrong shape and for samples without any image.
    """

    head_weights: ClassVar[dict[str, float]] = {"logit_output": 1.0}
    encoder_name = "image_encoder"

    def __init__(
        self,
        *,
        compat: Compat = "fixed",
        freeze_image_encoder: bool = True,
        input_norm: InputNorm = "none",
        orientation: Orientation = "as_is",
        embed_dim: int = OUT_CHANNELS,
        depth: int = 2,
        drop_path: float = 0.1,
        asymmetry: bool = True,
        latent_size: tuple[int, int] = (5, 5),
        asymmetry_mean: float = PUBLISHED_MEAN,
        asymmetry_std: float = PUBLISHED_STD,
        threshold_ratio: float = 0.4,
        persistent_weight: float = 1.0,
    ) -> None:
        super().__init__(input_norm)
        self.compat, self.orientation, self.asymmetry = compat, orientation, asymmetry
        self.threshold_ratio, self.persistent_weight = threshold_ratio, persistent_weight
        self.image_encoder = mirai_backbone()
        self.temporal_projection: nn.Module = nn.Identity()
        if embed_dim != OUT_CHANNELS:
            self.temporal_projection = nn.Sequential(
                nn.LayerNorm(OUT_CHANNELS), nn.Linear(OUT_CHANNELS, embed_dim), nn.Dropout(0.1)
            )
        self.vmrnn = VMRNN(embed_dim, depth, drop_path)
        if asymmetry:
            self.sad = AsymmetryDetector(OUT_CHANNELS, latent_size, asymmetry_mean, asymmetry_std, compat)
        self.ahl = CumulativeProbabilityLayer(embed_dim + asymmetry)
        self.freeze("vmrnn.Upsample")
        if freeze_image_encoder:
            self.freeze(self.encoder_name)

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        check_images(batch, ("images",), "VMRA-MaR", (None, VIEWS))
        images, taken = batch["images"], taken_images(batch)
        visits = taken.any(dim=2)
        maps, mirrored = self.encode(images, taken)

        # Missing images have features of 0, so the sum is that of the others. From here on, no reduced precision of
        # autocast.
        pooled = maps.amax(dim=(4, 5)).to(self.ahl.hazard_fc.weight.dtype)
        tokens = self.temporal_projection(pooled.sum(dim=2) / taken.sum(dim=2, keepdim=True).clamp(min=1))
        latent, states_down = self.vmrnn.Downsample(tokens, visits)
        decoded, states_up = self.run("vmrnn.Upsample", latent, visits)
        feature = latent.sum(dim=1) / visits.sum(dim=1, keepdim=True)
        outputs = {
            "temporal_feature": feature,
            "temporal_output": decoded,
            "latent_tokens": latent,
            "states_down": states_down,
            "states_up": states_up,
        }
        if self.asymmetry:
            found = self.detect(maps, mirrored, taken)
            persistent = track(found, self.threshold(*maps.shape[-2:]), self.persistent_weight)
            feature = torch.cat([feature, persistent], dim=1)
            outputs |= {
                "r_aa": persistent,
                "asymmetry_scores": found.scores,
                "asymmetry_coords": found.places,
                "coord_valid": found.valid,
            }
        logit = self.ahl(feature)
        return {"logit": logit, "probs": torch.sigmoid(logit), **outputs}

    def encode(self, images: Tensor, taken: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, T, 4, 512, h, w) of all images, and (B, T, 2, 512, h, w) of the mirrored right ones if needed.

        Missing images are not encoded, so batch norms do not include them; their features are 0.
        """
        flat, known = images.flatten(0, 2), taken.flatten()
        twice = self.asymmetry and self.compat == "fixed" and self.orientation == "as_is"
        if twice:
            flat = torch.cat([flat, images[:, :, 2:].flip(-1).flatten(0, 2)])
            known = torch.cat([known, taken[:, :, 2:].flatten()])
        if known.all():
            maps = self.features(flat)
        else:
            found = self.features(flat[known])
            maps = found.new_zeros(len(known), *found.shape[1:])
            maps[known] = found
        count = taken.numel()
        mirrored = maps[count:].reshape(*taken.shape[:2], 2, *maps.shape[1:]) if twice else None
        return maps[:count].reshape(*taken.shape, *maps.shape[1:]), mirrored

    def detect(self, maps: Tensor, mirrored: Tensor | None, taken: Tensor) -> Asymmetry:
        """The asymmetry of each visit, from pairs of maps with the same orientation."""
        if self.compat == "reference":  # pairs the first with the second view, the third with the fourth
            left, right = maps[:, :, 0::2], maps[:, :, 1::2].flip(-1)
            both = taken[:, :, 0::2] & taken[:, :, 1::2]
        else:
            left, right = maps[:, :, :2], maps[:, :, 2:] if mirrored is None else mirrored
            both = taken[:, :, :2] & taken[:, :, 2:]
        found: Asymmetry = self.sad(left, right, both)
        return found

    def threshold(self, height: int, width: int) -> float:
        """The largest movement of a persistent difference between visits, in grid cells, on maps (height, width)."""
        size = (height, width) if self.compat == "reference" else self.sad.grid(height, width)
        return self.threshold_ratio * max(size)

    @staticmethod
    def risk_heads(outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Head]:
        """The one head."""
        return {"logit_output": (outputs["logit"], batch["target"], batch["y_mask"])}

    @staticmethod
    def primary_risk(outputs: dict[str, Any]) -> Tensor:
        """Probability of cancer within 1 to 5 years, (B, 5)."""
        probabilities: Tensor = outputs["probs"]
        return probabilities


def taken_images(batch: dict[str, Any]) -> Tensor:
    """Which images (B, T, 4) of a batch exist: both masks combined; all of them without masks."""
    images = batch["images"]
    shape = tuple(images.shape[:3])
    taken = torch.ones(shape, dtype=torch.bool, device=images.device)
    for key, wanted in (("exam_mask", shape[:2]), ("view_mask", shape)):
        if (mask := batch.get(key)) is None:
            continue
        if tuple(mask.shape) != wanted:
            raise DataError(f"VMRA-MaR: {key} has the shape {tuple(mask.shape)}, the images need {wanted}")
        taken = taken & (mask.bool().unsqueeze(-1) if key == "exam_mask" else mask.bool())
    if not (some := taken.flatten(1).any(dim=1)).all():
        which = some.long().argmin().item()
        name = batch["sample_id"][which] if "sample_id" in batch else f"number {which} of the batch"
        raise DataError(f"VMRA-MaR: sample {name} has no image; leave it out, or correct exam_mask and view_mask")
    return taken
