"""Options of the plugin `vmra_mar`."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from medtrain_plugins.mammography.options import RiskOptions


class VMRAMaROptions(RiskOptions):
    """`[plugins.vmra_mar]`."""

    max_visits: int = Field(2, ge=2, description="visits in a sample at most, the current one included")
    freeze_image_encoder: bool = Field(True, description="false trains the image encoder too")
    embed_dim: int = Field(512, ge=1, description="width of the temporal network")
    depth: int = Field(2, ge=1, description="state-space blocks of its cells")
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the last block")
    asymmetry: bool = Field(True, description="compare the left with the right breast")
    latent_size: tuple[PositiveInt, PositiveInt] = Field(
        (5, 5), description="rows and columns of the grid that differences lie on"
    )
    asymmetry_mean: float = Field(
        2000.0, description="mean of asymmetry scores; with 2000 and 300 the first training batch sets both"
    )
    asymmetry_std: float = Field(300.0, gt=0, description="standard deviation of asymmetry scores")
    threshold_ratio: float = Field(
        0.4, ge=0, description="how far an asymmetry may move between visits, in the grid's longer side"
    )
    persistent_weight: float = Field(1.0, ge=0, description="additional weight of a visit whose asymmetry persists")
