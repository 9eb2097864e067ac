"""The training loss of MammoRegNet: similarity of the images after both steps, and smoothness of the flow."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medtrain_plugins.mammo_reg_net.model import FIXED
from medtrain_plugins.mammography.model.layers import Compat
from medtrain_plugins.mammography.model.registration_losses import (
    FOLDING_WEIGHT,
    correlation,
    folding,
    normalised_cross_correlation,
    regularisation,
    smoothness,
)

# The published code adds the summed folding of its 20 pairs to a mean over them; means of both have the same balance.
PUBLISHED_BATCH = 20


class RegistrationLoss:
    """(1 - NCC of the affine step) + (1 - NCC of the whole) + `weight` times the regularisation of the flow.

    Terms of `medtrain.protocols.loss`, each a scalar mean over pairs: they do not depend on the batches or the
    number of processes. NCC is computed per pair, folding costs 2e-4 per unit of area and pair.

    compat: "reference" computes the loss of the published code: one NCC over all pixels of the batch, folding summed
    over the batch at 1e-5 and measured along exchanged axes. It depends on the batch size and on the number of
    processes.

    Source: see `medtrain_plugins.mammography.registration_losses`.
    """

    def __init__(self, weight: float = 1.0, compat: Compat = "fixed") -> None:
        self.weight, self.compat = weight, compat

    def __call__(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        fixed, flow = batch[FIXED], outputs["flow"]
        if self.compat == "reference":
            similarity, price = normalised_cross_correlation, regularisation(flow, "reference")
        else:
            similarity = correlation
            price = (smoothness(flow) + PUBLISHED_BATCH * FOLDING_WEIGHT * folding(flow)).mean()
        return {
            "affine": 1 - similarity(fixed, outputs["affined"]).mean(),
            "warped": 1 - similarity(fixed, outputs["warped"]).mean(),
            "regularisation": self.weight * price,
        }
