"""Options of the plugin `mammo_reg_net`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medtrain_plugins.mammography.options import CohortOptions


class MammoRegNetOptions(CohortOptions):
    """`[plugins.mammo_reg_net]`."""

    image_size: tuple[int, int] | None = Field((1024, 512), description="rows and columns to resize to")
    augmentation: bool = Field(False, description="random crop, affine, brightness, contrast, gamma, shared by a pair")
    pixel_scale: Literal["unit", "raw"] = Field(
        "unit", description="what the network sees: unit, [0, 1] as in the risk models; raw, 0 to 65535"
    )
    regularisation: float = Field(1.0, ge=0, description="weight of smoothness and folding in the loss")
    compat: Literal["fixed", "reference"] = Field(
        "fixed", description="reference: the published loss, over whole batches and with its error in the Jacobian"
    )
