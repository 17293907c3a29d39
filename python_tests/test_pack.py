"""Weights packed once for the CPU: the layout, what it refuses, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import capmoe_kernels as cm
from capmoe_kernels import reference
from capmoe_kernels.packed_experts import PackedExperts
from capmoe_kernels.reference.pack import unpack
from cases import make_experts, normal, router_logits
from checks import same_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture
def cpu_backend():
    if cm.backends().serving["cpu"] != "cpu":
        pytest.skip(f"cpu: {cm.backends().absent['cpu']}")


@dtypes
@pytest.mark.parametrize("size", [(2, 1), (38, 33), (64, 64), (130, 100)], ids=str)
@pytest.mark.parametrize("kind", ["plain", "concat", "interleaved"])
def test_layout(cpu_backend, dtype, size, kind):
    """What the reference makes, from which the weights come back; between them only zeros."""
    gated, layout = kind != "plain", "concat" if kind == "plain" else kind
    weights = normal((3, *size), dtype)
    packed = torch.ops.capmoe.pack(weights, gated, layout)
    assert packed.equal(reference.pack(weights, gated, layout))
    assert packed.shape == torch.ops.capmoe.pack(weights.to("meta"), gated, layout).shape
    rows = size[0] // 2 if gated else size[0]
    back = unpack(packed, gated, size[1])
    halves = back.chunk(2 if gated else 1, dim=1)
    kept = torch.cat([half[:, :rows] for half in halves], dim=1)
    if layout == "interleaved":
        weights = torch.cat([weights[:, ::2], weights[:, 1::2]], dim=1)
    assert kept.equal(weights)
    assert packed.count_nonzero() == weights.count_nonzero()


def test_sixteen_rows_lie_side_by_side(cpu_backend):
    weights = torch.arange(2 * 16 * 32).view(1, 32, 32).float()
    packed = torch.ops.capmoe.pack(weights, False, "concat")
    assert packed[0, 1, 5].tolist() == weights[0, 16:, 5].tolist()
    gated = torch.ops.capmoe.pack(weights, True, "concat")
    assert gated.equal(packed)  # one block of gate rows, one of up rows
    pairs = torch.ops.capmoe.pack(weights.bfloat16(), False, "concat").view(1, 2, 16, 16, 2)
    assert pairs[0, 1, 3].equal(weights[0, 16:, 6:8].bfloat16())


@dtypes
def test_packs_are_experts(cpu_backend, dtype):
    experts = make_experts(6, 40, 24, dtype, bias=True)
    packed = experts.pack()
    assert isinstance(packed, PackedExperts)
    assert packed.pack() is packed
    sizes = packed.num_experts, packed.hidden_size, packed.intermediate_size
    assert sizes == (6, 40, 24)
    x, logits = normal((50, 40), dtype), router_logits(50, 6)
    out = cm.moe(x, logits, experts, cm.Gating(2), cm.Capacity(1.0))
    assert same_bits(cm.moe(x, logits, packed, cm.Gating(2), cm.Capacity(1.0)), out)


def test_any_strides(cpu_backend):
    dense = make_experts(3, 24, 16, bias=True)
    strided = replace(
        dense,
        gate_up_proj=dense.gate_up_proj.mT.contiguous().mT,
        down_proj=dense.down_proj.repeat_interleave(2, dim=-1)[..., ::2],
        gate_up_bias=dense.gate_up_bias.repeat_interleave(2, dim=-1)[..., ::2],
    )
    for name in ("gate_up_proj", "down_proj", "gate_up_bias", "down_bias"):
        assert getattr(strided.pack(), name).equal(getattr(dense.pack(), name))


def test_what_is_packed_keeps_its_values(cpu_backend):
    """Unpacked weights are never cached: a change in place, behind torch's back too, is seen."""
    experts = make_experts(2, 16, 8, bias=True)
    x, logits = normal((9, 16)), router_logits(9, 2)
    packed, before = experts.pack(), cm.moe(x, logits, experts, cm.Gating(1))
    experts.down_proj.data.mul_(2)
    experts.down_bias.data.mul_(2)
    assert cm.moe(x, logits, packed, cm.Gating(1)).equal(before)
    assert cm.moe(x, logits, experts, cm.Gating(1)).equal(2 * before)


@dtypes
@pytest.mark.parametrize("pack", [False, True], ids=["plain", "packed"])
def test_a_row_does_not_depend_on_its_neighbours(cpu_backend, dtype, pack):
    """Full tiles, tails of every length and single tokens give a token the same bits."""
    experts = make_experts(2, 300, 270, dtype)
    experts = experts.pack() if pack else experts
    x, logits = normal((150, 300), dtype), router_logits(150, 2)
    out = cm.moe(x, logits, experts, cm.Gating(1))
    for size in (1, 2, 5, 7, 17, 33, 64):
        parts = [slice(first, first + size) for first in range(0, 150, size)]
        cut = [cm.moe(x[part], logits[part], experts, cm.Gating(1)) for part in parts]
        assert same_bits(torch.cat(cut), out)


@dtypes
def test_rows_beyond_the_caches(cpu_backend, dtype):
    """From 16 MiB of rows on they are streamed past the caches: the bits of the halves."""
    hidden = 512 if dtype == torch.float32 else 1024
    experts = make_experts(2, hidden, 16, dtype, bias=True).pack()
    x, logits = normal((10000, hidden), dtype), router_logits(10000, 2)
    halves = [slice(0, 5000), slice(5000, None)]
    parts = [cm.moe(x[half], logits[half], experts, cm.Gating(1)) for half in halves]
    assert same_bits(cm.moe(x, logits, experts, cm.Gating(1)), torch.cat(parts))


@dtypes
def test_one_expert_and_no_token(cpu_backend, dtype):
    experts = make_experts(1, 24, 16, dtype)
    x, logits = normal((5, 24), dtype), router_logits(5, 1)
    out = cm.moe(x, logits, experts.pack(), cm.Gating(1))
    assert same_bits(cm.moe(x, logits, experts, cm.Gating(1)), out)
    assert cm.moe(x[:0], logits[:0], experts.pack(), cm.Gating(1)).shape == (0, 24)


def test_weights_that_require_grad_are_refused(cpu_backend):
    experts = make_experts(2, 16, 8)
    experts.down_proj.requires_grad_()
    with pytest.raises(RuntimeError, match=r"Experts\.down_proj requires grad"):
        experts.pack()
    with torch.no_grad():
        assert not experts.pack().down_proj.requires_grad


def test_layout_packed_is_only_made_by_pack():
    experts = make_experts(2, 16, 8)
    with pytest.raises(ValueError, match="layout must be one of 'concat', 'interleaved'"):
        replace(experts, layout="packed")
    with pytest.raises(TypeError, match=r"made by Experts.pack\(\)"):
        PackedExperts(experts.gate_up_proj, experts.down_proj)


def test_packed_is_not_turned_back(cpu_backend):
    with pytest.raises(TypeError, match="packed experts are not turned back"):
        make_experts(2, 16, 8).pack().concat()


def test_the_op_refuses_what_does_not_fit(cpu_backend):
    with pytest.raises(RuntimeError, match="weights must have an even number of rows where gated"):
        torch.ops.capmoe.pack(torch.zeros(1, 3, 4), True, "concat")
    with pytest.raises(RuntimeError, match="layout must be one of concat, interleaved, got packed"):
        torch.ops.capmoe.pack(torch.zeros(1, 4, 4), True, "packed")
    for pack in (torch.ops.capmoe.pack, reference.pack):
        with pytest.raises((RuntimeError, ValueError), match="must be concat for weights that"):
            pack(torch.zeros(1, 4, 4), False, "interleaved")
    with pytest.raises(ValueError, match=r"PackedExperts\.layout must be one of 'packed'"):
        replace(make_experts(2, 16, 8).pack(), layout="concat")
    with pytest.raises(RuntimeError, match="weights must be float32, bfloat16 or float16"):
        torch.ops.capmoe.pack(torch.zeros(1, 4, 4).double(), True, "concat")
    packed = make_experts(2, 40, 24).pack()
    routing = cm.route(router_logits(5, 2), cm.Gating(1))
    places = routing.expert_offsets, routing.tokens_per_expert, routing.row_tokens
    for up, down, hidden, message in [
        (packed.gate_up_proj[:, :-1], packed.down_proj, 40, "gate_up_proj must have shape"),
        (packed.gate_up_proj, packed.down_proj[:, :, :-16], 40, "down_proj must have shape"),
        (packed.gate_up_proj, packed.down_proj, 56, "down_proj must have shape"),
        (packed.gate_up_proj.half(), packed.down_proj, 40, "gate_up_proj must be"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.capmoe.grouped_mlp(
                normal((5, hidden)), up, down, None, None, *places, "silu", "packed"
            )


def test_a_row_without_a_token_is_refused(cpu_backend):
    experts = make_experts(1, 16, 8)
    ends = torch.tensor([0, 2]).int(), torch.tensor([2]).int(), torch.tensor([0, -1]).int()
    weights = experts.gate_up_proj, experts.down_proj, None, None
    with pytest.raises(RuntimeError, match="row_tokens must give expert 0 a token for row 1"):
        torch.ops.capmoe.grouped_mlp(normal((3, 16)), *weights, *ends, "silu", "concat")


def test_wrong_hidden_size_is_named(cpu_backend):
    packed = make_experts(2, 40, 24).pack()
    with pytest.raises(ValueError, match=r"hidden_states must have shape \[5, 40\]"):
        cm.moe(normal((5, 41)), router_logits(5, 2), packed, cm.Gating(1))
