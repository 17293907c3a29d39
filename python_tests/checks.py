"""What the tests assert with: integers exactly, floats against float64 truth."""

from __future__ import annotations

import torch

import capmoe_kernels as cm
import oracle


def assert_close_to_truth(out, truth, same_dtype, what="output"):
    """``|out - truth| <= 2 * max|same_dtype - truth| + eps * max|truth|``, everywhere, no NaN."""
    assert out.shape == truth.shape, f"{what}: {list(out.shape)} for {list(truth.shape)}"
    if out.numel() == 0:
        return
    error = (out.double() - truth).abs().max().item()
    allowed = 2 * (same_dtype.double() - truth).abs().max().item()
    allowed += torch.finfo(out.dtype).eps * truth.abs().max().item()
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"


def assert_floats(out, expected, rtol=5e-7, what="weights"):
    """float32 values that went through a handful of roundings, against float64 lists."""
    truth = torch.tensor(expected, dtype=torch.float64).reshape(out.shape)
    torch.testing.assert_close(
        out.double(), truth, rtol=rtol, atol=1e-36, msg=lambda m: f"{what}: {m}"
    )


def assert_routing(routing, decision, rtol=5e-7):
    """A Routing is the oracle's Decision: integers exactly, dtypes as documented."""
    integers = (
        "tokens_per_expert",
        "demand_per_expert",
        "expert_offsets",
        "expert_ids",
        "rows",
        "row_tokens",
    )
    for name in integers:
        got = getattr(routing, name)
        assert got.dtype == torch.int32, f"{name} is {got.dtype}"
        assert got.tolist() == getattr(decision, name), name
    assert routing.weights.dtype == torch.float32
    assert_floats(routing.weights, decision.weights, rtol)


def expected_select(ids, weights, scores, num_experts, capacity, **options):
    """The oracle's decision for tensors."""
    lists = {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }
    return oracle.select(
        ids.tolist(), weights.tolist(), scores.tolist(), num_experts, capacity, **lists
    )


def expected_gate(logits, gating, bias=None, **options):
    bias = None if bias is None else bias.tolist()
    return oracle.gate(logits.float().tolist(), gating, bias, **options)


def check_gate(backend, logits, gating, bias=None, rtol=3e-6, **options):
    """ids exactly; weights and scores of the used columns within a few float32 roundings."""
    ids, weights, scores = backend.gate(logits, gating, bias, **options)
    if "local" in options:
        options["local"] = range(*options["local"])
    expected = expected_gate(logits, gating, bias, **options)
    assert ids.dtype == torch.int32
    assert ids.tolist() == expected.expert_ids
    used = ids < logits.shape[1]
    for name, got in [("weights", weights), ("scores", scores)]:
        assert got.dtype == torch.float32
        assert got.shape == ids.shape
        truth = torch.tensor(getattr(expected, name), dtype=torch.float64).reshape(got.shape)
        torch.testing.assert_close(got[used].double(), truth[used], rtol=rtol, atol=1e-30)


def expected_route(backend, logits, gating, capacity, **options):
    """The oracle's decision on the backend's own float32 scores, which are checked by test_gate.

    The last bit of a softmax is a backend's own; everything after it is not.
    """
    extra = capacity.extra
    if capacity.reroute_rounds > 1:
        extra = gating.top_k * (capacity.reroute_rounds - 1)
    ids, weights, scores = backend.gate(
        logits,
        gating,
        options.pop("selection_bias", None),
        capacity.drop_score,
        capacity.expand,
        extra,
        capacity.local_experts or (0, 0),
    )
    total = gating.scaling if gating.renormalize == "kept" else None
    return expected_select(
        ids,
        weights,
        scores,
        logits.shape[1],
        capacity,
        top_k=gating.top_k,
        kept_weight_sum=total,
        **options,
    )


def check_route(backend, logits, gating, capacity, **options):
    routing = cm.route(logits, gating, capacity, **options)
    assert_routing(routing, expected_route(backend, logits, gating, capacity, **options))
    return routing


def kept_pairs(routing):
    """{(token, expert)} of a Routing."""
    ids, rows = routing.expert_ids.tolist(), routing.rows.tolist()
    return {
        (t, e) for t in range(len(ids)) for e, row in zip(ids[t], rows[t], strict=True) if row >= 0
    }


def same_bits(a, b):
    """Equal bit for bit, NaN included."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(width), b.contiguous().view(width))
