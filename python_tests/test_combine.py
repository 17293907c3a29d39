"""The weighted sum: float32, in candidate order, exactly 0 for a token with no expert."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels as cm
from cases import every_case, normal, router_logits
from checks import assert_close_to_truth, same_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def in_order(y, routing, dtype=torch.float32):
    """Column by column, every product and every sum rounded to ``dtype``."""
    out = torch.zeros(len(routing.rows), y.shape[1], dtype=dtype)
    for t, rows in enumerate(routing.rows.tolist()):
        for j, row in enumerate(rows):
            if row >= 0:
                out[t] += y[row].to(dtype) * routing.weights[t, j].to(dtype)
    return out


def poisoned_rows(routing, hidden, dtype=torch.float32, seed=4):
    """[N, H] whose padding rows hold NaN."""
    y = normal((len(routing.row_tokens), hidden), dtype, seed)
    y[routing.row_tokens < 0] = float("nan")
    return y


@dtypes
@every_case
def test_cases(backend, poison, case, dtype):
    routing = cm.route(case.logits(), case.gating, case.capacity, row_alignment=4)
    y = poisoned_rows(routing, case.H, dtype)
    out = cm.combine(y, routing)
    assert out.dtype == dtype
    assert out.shape == (case.T, case.H)
    truth = in_order(y, routing, torch.float64)
    assert_close_to_truth(out, truth, in_order(y, routing).to(dtype))
    lonely = (routing.rows < 0).all(1)
    assert same_bits(out[lonely], torch.zeros_like(out[lonely])), "exactly +0"


@dtypes
@pytest.mark.parametrize("hidden", [1, 3, 15, 16, 17, 33, 100, 257])
def test_any_width(backend, poison, dtype, hidden):
    routing = cm.route(router_logits(19, 8), cm.Gating(3), cm.Capacity(0.8), layout="padded")
    y = poisoned_rows(routing, hidden, dtype)
    assert_close_to_truth(
        cm.combine(y, routing), in_order(y, routing, torch.float64), in_order(y, routing).to(dtype)
    )


def test_candidate_order_and_float32(backend):
    """2**24 + 1 is lost in float32: only the order column 0, 1, 2 leaves exactly 0 or 1."""
    big = float(2**24)
    for values, expected in [
        ([big, 1.0, -big], 0.0),
        ([big, -big, 1.0], 1.0),
        ([1.0, big, -big], 0.0),
    ]:
        ids = torch.tensor([[2, 0, 1]])
        routing = cm.select(ids, torch.ones(1, 3), 3)
        y = torch.zeros(3, 1)
        for j, value in enumerate(values):
            y[routing.rows[0, j]] = value
        assert cm.combine(y, routing).item() == expected, values


def test_narrow_dtypes_are_summed_wide(backend):
    """256 + 1 + 1 in bfloat16 would stay 256; one rounding at the end gives 258."""
    for dtype, base in [(torch.bfloat16, 256.0), (torch.float16, 2048.0)]:
        routing = cm.select(torch.tensor([[0, 1, 2]]), torch.ones(1, 3), 3)
        y = torch.tensor([[base], [1.0], [1.0]], dtype=dtype)
        assert cm.combine(y, routing).item() == base + 2


def test_weights_are_float32(backend):
    """A weight that bfloat16 cannot hold: 1 + 2**-10 times 2**10 is 1025, rounded to 1024."""
    routing = cm.select(torch.tensor([[0, 1]]), torch.tensor([[1 + 2**-10, 1.0]]), 2)
    y = torch.tensor([[1024.0], [-1024.0]], dtype=torch.bfloat16)
    assert cm.combine(y, routing).item() == 1.0


@dtypes
def test_a_weight_of_zero_still_counts_as_kept(backend, dtype):
    """0 times inf is NaN for a kept pair, and nothing for a dropped one."""
    routing = cm.select(
        torch.tensor([[0], [0]]), torch.tensor([[0.0], [0.0]]), 1, cm.Capacity(limit=1)
    )
    out = cm.combine(torch.full((1, 2), float("inf"), dtype=dtype), routing)
    assert out[0].isnan().all()
    assert (out[1] == 0).all()


@dtypes
def test_nan_stays_in_its_token(backend, dtype):
    routing = cm.route(router_logits(20, 8), cm.Gating(2))
    y = normal((40, 17), dtype)
    clean = cm.combine(y, routing)
    y[routing.rows[6, 1]] = float("nan")
    out = cm.combine(y, routing)
    others = torch.arange(20) != 6
    assert out[6].isnan().all()
    assert same_bits(out[others], clean[others])


@dtypes
def test_strided_rows(backend, dtype):
    routing = cm.route(router_logits(20, 8), cm.Gating(2))
    y = normal((40, 18), dtype)
    expected = cm.combine(y, routing)
    for view in [
        y.repeat_interleave(2, 0)[::2],
        y.repeat_interleave(2, 1)[:, ::2],
        y.t().contiguous().t(),
    ]:
        assert not view.is_contiguous()
        assert same_bits(cm.combine(view, routing), expected)


def test_linear_in_the_weights(backend):
    routing = cm.route(router_logits(30, 8), cm.Gating(3), cm.Capacity(1.0))
    y = normal((len(routing.row_tokens), 12))
    once = cm.combine(y, routing)
    assert cm.combine(y, routing._replace(weights=routing.weights * 4)).equal(once * 4)


@dtypes
def test_repeats_to_the_bit(backend, dtype):
    routing = cm.route(router_logits(257, 60), cm.Gating(8), cm.Capacity(1.0))
    y = normal((len(routing.row_tokens), 40), dtype)
    assert same_bits(cm.combine(y, routing), cm.combine(y.clone(), routing))


@pytest.mark.parametrize("weight", [1.0, 1.5, 3e-5, 3e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_value_is_read_and_rounded_to_nearest_even(backend, dtype, weight):
    """Times 1.5 about half of them are ties; 3e-5 and 3e4 reach subnormals and overflow."""
    y = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)[:, None]
    rows = torch.arange(2**16, dtype=torch.int32)[:, None]
    out = backend.combine(y, rows, torch.full((2**16, 1), weight))
    # A sum of one term starts from +0, so -0 becomes +0.
    expected = (0.0 + weight * y.float()).to(dtype)
    assert torch.equal(out.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(out[number].view(torch.int16), expected[number].view(torch.int16))
