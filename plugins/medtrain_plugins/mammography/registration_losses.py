"""What MammoRegNet is trained with: similarity of the images, smoothness of the flow, a price for folding.

Flows have **channel 0 = dy (rows), channel 1 = dx (columns)**, in pixels. Source: the training recipe
published with ImgFeatAlign ("Reconsidering explicit longitudinal mammography alignment for enhanced breast
cancer risk prediction", 2025).
"""

from __future__ import annotations

from torch import Tensor

from medtrain_plugins.mammography.layers import Compat

FOLDING_WEIGHT = 1e-5


def normalised_cross_correlation(fixed: Tensor, moved: Tensor) -> Tensor:
    """Pearson correlation of all pixels of the batch at once, a scalar in [-1, 1]; 0 for a constant image.

    Mean and deviation are those of the whole tensor, so this is no mean over samples: it cannot be added over
    batches or processes. Values that are not finite stay so.
    """

    def standardise(x: Tensor) -> Tensor:
        return (x - x.mean()) / (x.std() + 1e-8)

    return (standardise(fixed) * standardise(moved)).sum() / (fixed.numel() - 1)


def smoothness(flow: Tensor) -> Tensor:
    """Half the sum of the mean squared forward differences of a flow (B, 2, H, W) along rows and columns."""
    along_rows, along_columns = flow.diff(dim=2), flow.diff(dim=3)
    return 0.5 * (along_rows.square().mean() + along_columns.square().mean())


def jacobian_determinant(flow: Tensor, compat: Compat = "fixed") -> Tensor:
    """Local change of area of `p -> p + flow(p)`, (B, H-1, W-1); not positive where the image folds.

    `compat="reference"` takes channel 0 for columns, as the published training code does by mistake.
    """
    along_rows = flow.diff(dim=2)[..., :-1]
    along_columns = flow.diff(dim=3)[:, :, :-1]
    row, column = (1, 0) if compat == "reference" else (0, 1)
    stretch = (along_rows[:, row] + 1) * (along_columns[:, column] + 1)
    return stretch - along_columns[:, row] * along_rows[:, column]


def folding(flow: Tensor, compat: Compat = "fixed") -> Tensor:
    """Sum over the batch of the negative parts of the Jacobian determinant, a scalar."""
    determinant = jacobian_determinant(flow, compat)
    return 0.5 * (determinant.abs() - determinant).sum()


def regularisation(flow: Tensor, compat: Compat = "fixed") -> Tensor:
    """Smoothness plus 1e-5 times folding."""
    return smoothness(flow) + FOLDING_WEIGHT * folding(flow, compat)
