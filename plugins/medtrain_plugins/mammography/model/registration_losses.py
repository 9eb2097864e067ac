"""The losses of MammoRegNet: similarity of the images, smoothness of the flow, a penalty for folding.

Images are (B, C, H, W). Flows are (B, 2, H, W) in pixels, **channel 0 = dy (rows), channel 1 = dx (columns)**. Values
of each pair are (B,), and can be summed over batches and processes. Source: the training recipe published with
ImgFeatAlign ("Reconsidering explicit longitudinal mammography alignment for enhanced breast cancer risk prediction",
2025).
"""

from __future__ import annotations

from torch import Tensor

from medtrain_plugins.mammography.model.layers import Compat

FOLDING_WEIGHT = 1e-5


def correlation(fixed: Tensor, moved: Tensor) -> Tensor:
    """Pearson correlation of the pixels of each pair of images (NCC), (B,) in [-1, 1]; 0 for a constant image.

    Values that are not finite stay so.
    """

    def standardise(x: Tensor) -> Tensor:
        x = x.flatten(1)
        return (x - x.mean(dim=1, keepdim=True)) / (x.std(dim=1, keepdim=True) + 1e-8)

    return (standardise(fixed) * standardise(moved)).sum(dim=1) / (fixed[0].numel() - 1)


def normalised_cross_correlation(fixed: Tensor, moved: Tensor) -> Tensor:
    """Pearson correlation of all pixels of the batch at once, a scalar, as in the published training code.

    Mean and deviation are those of the whole tensor, so this is not a mean over samples: it cannot be summed over
    batches or processes.
    """
    return correlation(fixed.unsqueeze(0), moved.unsqueeze(0))[0]


def smoothness(flow: Tensor) -> Tensor:
    """Half the sum of the mean squared forward differences along rows and columns, (B,)."""
    along_rows, along_columns = flow.diff(dim=2), flow.diff(dim=3)
    return 0.5 * (along_rows.square().mean(dim=(1, 2, 3)) + along_columns.square().mean(dim=(1, 2, 3)))


def jacobian_determinant(flow: Tensor, compat: Compat = "fixed") -> Tensor:
    """Local change of area of `p -> p + flow(p)`, (B, H-1, W-1); not positive where the image folds.

    `compat="reference"` uses channel 0 as columns, as the published training code does by mistake.
    """
    along_rows = flow.diff(dim=2)[..., :-1]
    along_columns = flow.diff(dim=3)[:, :, :-1]
    row, column = (1, 0) if compat == "reference" else (0, 1)
    stretch = (along_rows[:, row] + 1) * (along_columns[:, column] + 1)
    return stretch - along_columns[:, row] * along_rows[:, column]


def folding(flow: Tensor, compat: Compat = "fixed") -> Tensor:
    """Sum of the negative parts of the Jacobian determinant, (B,)."""
    determinant = jacobian_determinant(flow, compat)
    return 0.5 * (determinant.abs() - determinant).sum(dim=(1, 2))


def folded_share(flow: Tensor) -> Tensor:
    """Share of positions where the Jacobian determinant is not positive, (B,) in [0, 1]."""
    return (jacobian_determinant(flow) <= 0).float().mean(dim=(1, 2))


def regularisation(flow: Tensor, compat: Compat = "fixed") -> Tensor:
    """Mean smoothness plus 1e-5 times the batch's summed folding, a scalar, as in the published training code."""
    return smoothness(flow).mean() + FOLDING_WEIGHT * folding(flow, compat).sum()
