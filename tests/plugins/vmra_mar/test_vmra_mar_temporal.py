"""The temporal network: golden values of its cell, scans of a map, visits that are missing."""

from __future__ import annotations

import pytest
import torch
from medtrain_plugins.vmra_mar.vmrnn import SS2D, VMRNN, VMRNNCell
from torch.testing import assert_close


@pytest.fixture
def cell(cases) -> VMRNNCell:
    return cases("vmrnn_cell").load_into(VMRNNCell(4, depth=2, drop_path=0.1, d_state=2))


def test_cell_has_golden_values(cases, cell):
    case = cases("vmrnn_cell")
    x = case.tensor("x")
    hidden, state = cell(x, (torch.zeros_like(x), torch.zeros_like(x)))
    assert_close(hidden, case.tensor("Ht"), rtol=1e-5, atol=1e-6)
    assert_close(state, case.tensor("Ct"), rtol=1e-5, atol=1e-6)
    # What comes out when the scan is left out, as the published code does without an optional package.
    assert (hidden - cases("vmrnn_cell_identity_scan").tensor("Ht")).abs().max() > 1e-3


def test_state_is_carried(cell):
    torch.manual_seed(0)
    x, hidden, state = torch.randn(3, 2, 2, 4, dtype=torch.float64)
    start = cell(x, (torch.zeros_like(x), torch.zeros_like(x)))
    for changed in ((hidden, torch.zeros_like(x)), (torch.zeros_like(x), state)):
        assert not torch.allclose(cell(x, changed)[0], start[0])


def test_four_directions_of_a_map():
    """With channels that do not mix and no skip, every scan is a decaying sum over what came before."""
    torch.manual_seed(0)
    scans = SS2D(4, d_state=1).double()
    x = torch.rand(1, 8, 3, 2, dtype=torch.float64)
    with torch.no_grad():
        scans.Ds.zero_()
        found = scans.scan(x, None)
        expected = torch.zeros(3, 2, 8, dtype=torch.float64)
        places = [(i, j) for i in range(3) for j in range(2)]
        columns = [(i, j) for j in range(2) for i in range(3)]
        for k, order in enumerate([places, columns, places[::-1], columns[::-1]]):
            state = torch.zeros(8, dtype=torch.float64)
            for i, j in order:
                u = x[0, :, i, j]
                projected = scans.x_proj_weight[k] @ u
                step = scans.dt_projs_weight[k] @ projected[:1] + scans.dt_projs_bias[k]
                step = torch.log1p(step.exp())
                decay = torch.exp(-step * scans.A_logs.view(4, 8)[k].exp())
                state = decay * state + step * projected[1] * u
                expected[i, j] += projected[2] * state
    assert_close(found[0], expected, rtol=1e-12, atol=1e-12)


def test_initial_values():
    scans = SS2D(32)
    steps = torch.nn.functional.softplus(scans.dt_projs_bias)
    assert 0.9e-3 < steps.min() < 2e-3 and 0.05 < steps.max() < 0.101
    assert_close(scans.A_logs.exp(), torch.arange(1.0, 17).expand(256, 16))
    assert (scans.Ds == 1).all()
    assert scans.dt_projs_weight.abs().max() <= 2**-0.5


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_missing_visits_in_front_change_nothing(missing):
    torch.manual_seed(0)
    network = VMRNN(16, depth=2, drop_path=0.1).double().eval()
    tokens = torch.randn(3, 2, 16, dtype=torch.float64)
    padded = torch.cat([torch.randn(3, missing, 16, dtype=torch.float64), tokens], dim=1)
    present = torch.arange(missing + 2).expand(3, -1) >= missing
    for half in (network.Downsample, network.Upsample):
        (short, short_states), (long, long_states) = half(tokens), half(padded, present)
        assert_close(long[:, missing:], short, rtol=1e-12, atol=1e-12)
        assert (long[:, :missing] == 0).all()
        for ours, theirs in zip(long_states[0], short_states[0], strict=True):
            assert_close(ours[:, missing:], theirs, rtol=1e-12, atol=1e-12)
        assert_close(half(padded, torch.ones_like(present))[0], half(padded)[0])
        assert not torch.allclose(half(padded)[0][:, missing:], short)  # the control: there they are visits


def test_missing_visits_get_no_gradient():
    torch.manual_seed(0)
    network = VMRNN(8, depth=2, drop_path=0.0).double()
    tokens = torch.randn(2, 4, 8, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[False, False, True, True], [False, True, True, True]])
    network.Downsample(tokens, present)[0].square().sum().backward()
    assert (tokens.grad[~present] == 0).all()
    assert (tokens.grad[present] != 0).all()
