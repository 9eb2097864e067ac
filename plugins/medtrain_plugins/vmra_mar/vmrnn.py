"""The recurrent state-space cell over the visits of a woman: SS2D, VSB, the cell, and its two halves.

Module names are those of trained checkpoints. Sources: "VMRNN: integrating vision Mamba and LSTM for efficient and
accurate spatiotemporal forecasting", 2024; "VMamba: visual state space model", 2024.

Visits are the columns of a map with one row. The scans skip a missing visit, and the convolution treats it like the
area outside the border: before a woman's first visit it changes nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtrain_plugins.vmra_mar.selective_scan import selective_scan

State = tuple[Tensor, Tensor]


class SS2D(nn.Module):
    """Selective scans of a map in four directions: maps (N, H, W, dim) in, the same out.

    present: (N, H, W) bool, False where a position is missing; None: no position is missing. d_state: size of the
    scans' state per channel. expand: inner width, in dims.
    """

    def __init__(self, dim: int, d_state: int = 16, expand: int = 2) -> None:
        super().__init__()
        inner, self.dt_rank, self.d_state = expand * dim, math.ceil(dim / 16), d_state
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(torch.empty(4, self.dt_rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(4, inner, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(4, inner))
        self.A_logs = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(4 * inner, 1))
        self.Ds = nn.Parameter(torch.ones(4 * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        nn.init.uniform_(self.x_proj_weight, -(inner**-0.5), inner**-0.5)
        nn.init.uniform_(self.dt_projs_weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        # softplus of the bias is the step size at the start: 0.001 to 0.1, evenly on a logarithmic scale.
        steps = torch.empty(4, inner).uniform_(math.log(1e-3), math.log(0.1)).exp().clamp(min=1e-4)
        with torch.no_grad():
            self.dt_projs_bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = x.permute(0, 3, 1, 2)
        if present is not None:
            x = x.masked_fill(~present.unsqueeze(1), 0)
        y = self.scan(F.silu(self.conv2d(x)), present)
        out: Tensor = self.out_proj(self.out_norm(y) * F.silu(z))
        return out

    def scan(self, x: Tensor, present: Tensor | None) -> Tensor:
        """Maps (N, D, H, W) -> the sum of the four scans (N, H, W, D), in float32 at least.

        Row by row, column by column, and both from the end.
        """
        height, width = x.shape[-2:]
        with torch.autocast(x.device.type, enabled=False):
            sequences = directions(x if x.dtype == torch.float64 else x.float())
            projected = torch.einsum("nkdl,kcd->nkcl", sequences, self.x_proj_weight)
            steps, B, C = torch.split(projected, [self.dt_rank, self.d_state, self.d_state], dim=2)
            delta = torch.einsum("nkrl,kdr->nkdl", steps, self.dt_projs_weight)
            delta = F.softplus(delta + self.dt_projs_bias.unsqueeze(-1))
            if present is not None:
                delta = delta.masked_fill(~directions(present.unsqueeze(1)), 0)
            A = -torch.exp(self.A_logs)
            y = selective_scan(sequences.flatten(1, 2), delta.flatten(1, 2), A, B, C, self.Ds).view(delta.shape)
            y = y[:, :2] + y[:, 2:].flip(-1)
            rows, columns = y[:, 0].reshape(x.shape), y[:, 1].reshape(*x.shape[:2], width, height)
            total: Tensor = rows + columns.transpose(2, 3)
            return total.permute(0, 2, 3, 1)


def directions(x: Tensor) -> Tensor:
    """Maps (N, D, H, W) as sequences (N, 4, D, H * W): rows, columns, and both reversed."""
    forward = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], dim=1)
    return torch.cat([forward, forward.flip(-1)], dim=1)


class VSB(nn.Module):
    """Vision state-space block on tokens (N, L, dim): `x + SS2D(LN(x))`, with a hidden state mixed in if given."""

    def __init__(self, dim: int, drop_path: float, d_state: int = 16) -> None:
        super().__init__()
        from torchvision.ops import StochasticDepth

        self.ln_1 = nn.LayerNorm(dim)
        self.self_attention = SS2D(dim, d_state)
        self.linear = nn.Linear(2 * dim, dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor, hidden: Tensor | None, present: Tensor | None = None) -> Tensor:
        u = self.ln_1(x)
        if hidden is not None:
            u = self.linear(torch.cat([u, self.ln_1(hidden)], dim=-1))
        row = None if present is None else present.unsqueeze(1)
        out: Tensor = x + self.drop_path(self.self_attention(u.unsqueeze(1), row).squeeze(1))
        return out


class VMRNNCell(nn.Module):
    """An LSTM cell whose single gate comes from state-space blocks: tokens (N, L, dim) and a state -> the next state.

    The state is (H, C), each (N, L, dim); `z = VSBs(x, H)`, `F = sigmoid(z)`, `C' = F (C + tanh z)`,
    `H' = F tanh C'`. Zero where a token is missing. `drop_path` is the last block's, rising linearly from 0.
    """

    def __init__(self, dim: int, depth: int, drop_path: float, d_state: int = 16) -> None:
        super().__init__()
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.VSBs = nn.ModuleList(VSB(dim, rate, d_state) for rate in rates)

    def forward(self, x: Tensor, state: State, present: Tensor | None = None) -> State:
        hidden, cell = state
        z = self.VSBs[0](x, hidden, present)
        for block in self.VSBs[1:]:
            z = block(z, None, present)
        gate = torch.sigmoid(z)
        cell = gate * (cell + torch.tanh(z))
        hidden = gate * torch.tanh(cell)
        if present is not None:
            hidden, cell = (tensor.masked_fill(~present.unsqueeze(-1), 0) for tensor in (hidden, cell))
        return hidden, cell


class DownSample(nn.Module):
    """The encoding half, of one cell: tokens (N, L, dim) -> (hidden tokens, [(H, C)]), from a state of zeros.

    A map of one row keeps its resolution, so nothing is merged.
    """

    def __init__(self, dim: int, depth: int, drop_path: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList([VMRNNCell(dim, depth, drop_path)])

    def forward(self, x: Tensor, present: Tensor | None = None) -> tuple[Tensor, list[State]]:
        states: list[State] = []
        for layer in self.layers:
            start = torch.zeros_like(x)
            states.append(layer(x, (start, start), present))
            x = states[-1][0]
        return x, states


class UpSample(DownSample):
    """The decoding half: the same on the hidden tokens, then a sigmoid; 0 where a token is missing."""

    def forward(self, x: Tensor, present: Tensor | None = None) -> tuple[Tensor, list[State]]:
        x, states = super().forward(x, present)
        x = torch.sigmoid(x)
        return (x if present is None else x.masked_fill(~present.unsqueeze(-1), 0)), states


class VMRNN(nn.Module):
    """Both halves, with the key names of checkpoints; the model runs them.

    The risk does not depend on the decoding half, and only the first block of a cell gets a hidden state. The other
    parameters are kept, as checkpoints have them, but frozen.
    """

    def __init__(self, dim: int, depth: int, drop_path: float) -> None:
        super().__init__()
        self.Downsample = DownSample(dim, depth, drop_path)
        self.Upsample = UpSample(dim, depth, drop_path)
        for cell in self.Downsample.layers:
            for block in cell.VSBs[1:]:  # type: ignore[index]
                block.linear.requires_grad_(False)
