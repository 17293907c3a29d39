"""Rows of the packed buffer (3.2): a prefix sum in token order, packed or padded, aligned."""

from __future__ import annotations

import pytest
import torch

import capmoe_kernels as cm
from cases import every_case, normal, router_logits
from checks import assert_routing, expected_route

LAYOUTS = ["packed", "padded"]


def check_slots(routing, num_experts, alignment):
    """What any reader of the layout relies on, said without the oracle."""
    rows, ids = routing.rows, routing.expert_ids
    counts, offsets = routing.tokens_per_expert.tolist(), routing.expert_offsets.tolist()
    owned = {}
    for e in range(num_experts):
        assert offsets[e] % alignment == 0
        assert offsets[e] + counts[e] <= offsets[e + 1] <= routing.row_tokens.numel()
        tokens = routing.row_tokens[offsets[e] : offsets[e] + counts[e]].tolist()
        assert tokens == sorted(set(tokens)), "token order, each once"
        owned |= {(t, e): offsets[e] + i for i, t in enumerate(tokens)}
    kept = rows >= 0
    found = {(t, ids[t, j].item()): rows[t, j].item() for t, j in kept.nonzero().tolist()}
    assert found == owned, "rows and row_tokens are inverses"
    assert (routing.row_tokens >= 0).sum().item() == len(owned)
    assert (routing.weights[~kept] == 0).all()
    assert (rows[~kept] == -1).all()


@every_case
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alignment", [1, 2, 7, 16, 128])
def test_layouts(backend, poison, case, layout, alignment):
    options = {"layout": layout, "row_alignment": alignment}
    logits = case.logits()
    routing = cm.route(logits, case.gating, case.capacity, **options)
    assert_routing(routing, expected_route(backend, logits, case.gating, case.capacity, **options))
    check_slots(routing, case.E, alignment)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mask_and_layout(backend, poison, layout):
    """C comes from the real tokens, the room per expert from sizes the host knows."""
    mask = torch.arange(64) % 4 == 0
    capacity = cm.Capacity(factor=1.0)
    options = {"token_mask": mask, "layout": layout, "row_alignment": 4}
    logits = router_logits(64, 8, "skewed")
    routing = cm.route(logits, cm.Gating(2), capacity, **options)
    assert_routing(routing, expected_route(backend, logits, cm.Gating(2), capacity, **options))
    check_slots(routing, 8, 4)
    assert routing.tokens_per_expert.max().item() == 4
    if layout == "padded":
        assert routing.expert_offsets.tolist() == [16 * e for e in range(9)]


def test_padded_is_a_cube(backend):
    """[N, H] is [E, C, H]."""
    routing = cm.route(router_logits(50, 8), cm.Gating(2), cm.Capacity(limit=6), layout="padded")
    assert routing.row_tokens.shape == (8 * 6,)
    assert routing.expert_offsets.tolist() == list(range(0, 49, 6))
    cube = routing.row_tokens.view(8, 6)
    for e, count in enumerate(routing.tokens_per_expert.tolist()):
        assert (cube[e, :count] >= 0).all()
        assert (cube[e, count:] == -1).all()


@pytest.mark.parametrize("limit", [0, 1, 3, 50, 51, 2**31 - 1])
def test_layout_changes_no_decision(backend, limit):
    logits = router_logits(50, 8, "skewed")
    capacity = cm.Capacity(limit=limit)
    packed = cm.route(logits, cm.Gating(3), capacity)
    padded = cm.route(logits, cm.Gating(3), capacity, layout="padded", row_alignment=8)
    for name in ["expert_ids", "weights", "tokens_per_expert", "demand_per_expert"]:
        assert getattr(packed, name).equal(getattr(padded, name)), name
    assert ((packed.rows >= 0) == (padded.rows >= 0)).all()


@pytest.mark.parametrize("style", ["skewed", "levels", "one_expert", "gaussian"])
@pytest.mark.parametrize("alignment", [1, 8])
def test_item_18_buffer_bound(backend, style, alignment):
    for tokens in [0, 1, 2, 40]:
        logits = router_logits(tokens, 10, style)
        for limit in [0, 1, 5, 1000]:
            for options in [
                {},
                {"expand": "rank", "extra": 4},
                {"max_experts_per_token": 1},
                {"reroute_rounds": 3},
                {"scope": "device", "experts_per_device": 5},
            ]:
                capacity = cm.Capacity(limit=limit, **options)
                routing = cm.route(logits, cm.Gating(2), capacity, row_alignment=alignment)
                check_slots(routing, 10, alignment)
                columns = min(routing.rows.shape[1], 2 if "reroute_rounds" in options else 99)
                columns = min(columns, capacity.max_experts_per_token or columns)
                bound = min(tokens * columns, 10 * min(limit, tokens))
                allocated = routing.row_tokens.numel()
                assert routing.tokens_per_expert.sum().item() <= bound <= allocated
                assert allocated == bound or alignment > 1
                assert allocated <= bound + 10 * (alignment - 1) + alignment - 1
                share = 5 if capacity.scope == "device" else 1
                assert routing.tokens_per_expert.max().item() <= min(tokens, share * limit)


def test_device_scope_with_alignment_fits(backend):
    """Ragged ends: experts of one device hold 1 and 15 rows of its budget of 16."""
    logits = torch.full((15, 4), -10.0)
    logits[:, 1] = 5.0
    logits[0, 0] = 6.0
    capacity = cm.Capacity(limit=8, scope="device", experts_per_device=2)
    for top_k in [1, 2]:
        routing = cm.route(logits, cm.Gating(top_k), capacity, row_alignment=8)
        check_slots(routing, 4, 8)
        assert routing.tokens_per_expert[:2].sum().item() == 15 if top_k == 1 else 16


def test_conservation(backend, poison):
    """gather, identity expert, weighted scatter: the sum of the kept weights times x."""
    x = normal((60, 9))
    for layout in LAYOUTS:
        routing = cm.route(
            router_logits(60, 8, "skewed"),
            cm.Gating(3),
            cm.Capacity(factor=0.8),
            layout=layout,
            row_alignment=4,
        )
        rows = cm.dispatch(x, routing)
        real = routing.row_tokens >= 0
        assert rows[real].equal(x[routing.row_tokens[real].long()])
        out = cm.combine(rows, routing)
        expected = routing.weights.double().sum(1, keepdim=True) * x.double()
        torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("hidden", [1, 7, 64, 100])
def test_dispatch_copies_bits(backend, poison, dtype, hidden):
    logits = router_logits(70, 8, "skewed")
    routing = cm.route(logits, cm.Gating(2), cm.Capacity(factor=1.0), row_alignment=8)
    real = routing.row_tokens >= 0
    x = normal((70, hidden), dtype)
    for view in [
        x,
        x.repeat_interleave(2, 0)[::2],
        x.t().contiguous().t(),
        x[:1].expand(70, hidden),
    ]:
        rows = cm.dispatch(view, routing)
        assert rows.shape == (routing.row_tokens.numel(), hidden)
        assert rows.dtype == dtype
        assert rows[real].equal(view[routing.row_tokens[real].long()])


def test_dispatch_of_nothing(backend):
    for tokens, capacity in [(0, None), (5, cm.Capacity(limit=0))]:
        routing = cm.route(torch.zeros(tokens, 4), cm.Gating(2), capacity)
        assert cm.dispatch(torch.ones(tokens, 6), routing).shape == (0, 6)
        out = cm.combine(torch.ones(0, 6), routing)
        assert out.equal(torch.zeros(tokens, 6))
