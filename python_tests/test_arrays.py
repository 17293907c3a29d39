"""Arrays of other libraries through DLPack: their kind in, their kind out, shared, not copied."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels.arrays import accepts_arrays
from cases import make_experts, normal, router_logits


def numpy_experts():
    made = make_experts(8, 16, 12)
    return made, cm.Experts(made.gate_up_proj.numpy(), made.down_proj.numpy())


def test_route_returns_numpy(backend):
    logits = router_logits(30, 8)
    options = {"token_mask": torch.arange(30) % 5 > 0, "token_priority": torch.arange(30) % 2}
    expected = cm.route(logits, cm.Gating(2), cm.Capacity(1.0), **options)
    arrays = {name: value.numpy() for name, value in options.items()}
    routing = cm.route(logits.numpy(), cm.Gating(2), cm.Capacity(1.0), **arrays)
    assert isinstance(routing, cm.Routing)
    for got, want in zip(routing, expected, strict=True):
        assert type(got) is np.ndarray
        assert got.dtype == want.numpy().dtype
        np.testing.assert_array_equal(got, want.numpy())


def test_select_returns_numpy(backend):
    ids = np.array([[0, -1], [2, 0]])
    routing = cm.select(ids, np.ones((2, 2), np.float32), 3, cm.Capacity(limit=1))
    assert routing.rows.tolist() == [[0, -1], [1, -1]]
    assert type(routing.rows) is np.ndarray


def test_the_whole_layer_in_numpy(backend):
    x, logits = normal((30, 16)), router_logits(30, 8)
    made, experts = numpy_experts()
    expected = cm.moe(x, logits, made, cm.Gating(2), cm.Capacity(1.0))
    fused = cm.moe(x.numpy(), logits.numpy(), experts, cm.Gating(2), cm.Capacity(1.0))
    routing = cm.route(logits.numpy(), cm.Gating(2), cm.Capacity(1.0))
    rows = cm.dispatch(x.numpy(), routing)
    y = cm.grouped_mlp(rows, experts, routing)
    out = cm.combine(y, routing)
    for got in (fused, rows, y, out):
        assert type(got) is np.ndarray
        assert got.dtype == np.float32
    np.testing.assert_array_equal(fused, expected.numpy())
    np.testing.assert_array_equal(out, expected.numpy())


def test_mixed_arrays(backend):
    """One NumPy array among the arguments: NumPy comes back."""
    x, logits = normal((30, 16)), router_logits(30, 8)
    made, experts = numpy_experts()
    expected = cm.moe(x, logits, made, cm.Gating(2))
    for pair in [(x.numpy(), logits), (x, logits.numpy())]:
        out = cm.moe(*pair, experts, cm.Gating(2))
        assert type(out) is np.ndarray
        np.testing.assert_array_equal(out, expected.numpy())
    mask = np.arange(30) % 2 == 0
    masked = cm.moe(x, logits, experts, cm.Gating(2), token_mask=mask)
    assert type(masked) is np.ndarray
    assert not masked[~mask].any()


def test_torch_in_torch_out(backend):
    """The kind is the tokens', whatever the weights were made of."""
    routing = cm.route(router_logits(5, 8), cm.Gating(2))
    assert all(type(field) is torch.Tensor for field in routing)
    _, experts = numpy_experts()
    out = cm.moe(normal((5, 16)), router_logits(5, 8), experts, cm.Gating(2))
    assert type(out) is torch.Tensor


@pytest.mark.parametrize("step", [1, 2])
def test_arrays_are_shared_both_ways(step):
    array = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::step]
    seen = []

    @accepts_arrays
    def touch(tensor):
        seen.append(tensor.data_ptr())
        tensor += 1
        return tensor

    out = touch(array)
    assert seen == [array.ctypes.data]
    assert array[0, 0] == 1.0
    assert np.shares_memory(out, array)


def test_strided_arrays(backend):
    wide = router_logits(20, 16).numpy()
    routing = cm.route(wide[::2, ::2], cm.Gating(2), cm.Capacity(1.0))
    dense = cm.route(np.ascontiguousarray(wide[::2, ::2]), cm.Gating(2), cm.Capacity(1.0))
    for a, b in zip(routing, dense, strict=True):
        np.testing.assert_array_equal(a, b) if a.dtype.kind == "i" else np.testing.assert_allclose(
            a, b, rtol=1e-6
        )
