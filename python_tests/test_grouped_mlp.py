"""The experts on their rows: every activation, layout, dtype and shape, against float64 loops."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

import capmoe_kernels as cm
import oracle_mlp
from capmoe_kernels.experts import Activation
from cases import every_case, make_experts, normal
from checks import assert_close_to_truth, same_bits

ACTIVATIONS = get_args(Activation)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def routed(counts, alignment=1, layout="packed"):
    """A Routing that gives expert e ``counts[e]`` tokens, one expert per token."""
    ids = torch.cat([torch.full((n,), e) for e, n in enumerate(counts)]).to(torch.int64)
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))][:, None]
    ones = torch.ones(len(ids), 1)
    return cm.select(ids, ones, len(counts), layout=layout, row_alignment=alignment)


def check_mlp(x, experts, routing):
    """Each live row is its expert's MLP of its token's row. -> the output"""
    out = cm.grouped_mlp(cm.dispatch(x, routing), experts, routing)
    assert out.dtype == x.dtype
    assert out.shape == (len(routing.row_tokens), x.shape[1])
    offsets, counts = routing.expert_offsets.tolist(), routing.tokens_per_expert.tolist()
    got, truth, naive = [], [], []
    for e, count in enumerate(counts):
        rows = slice(offsets[e], offsets[e] + count)
        tokens = routing.row_tokens[rows].tolist()
        got.append(out[rows])
        truth += [oracle_mlp.expert_mlp(x[t], experts, e) for t in tokens]
        naive.append(oracle_mlp.same_dtype_mlp(x[tokens], experts, e))
    if truth:
        assert_close_to_truth(torch.cat(got), torch.stack(truth), torch.cat(naive))
    check_packed(x, experts, routing, out)
    return out


def check_packed(x, experts, routing, expected):
    """Packed weights change no bit; plain PyTorch's matmul may round differently for strides."""
    packed = experts.pack()
    if packed.layout != "packed":
        return
    live = routing.row_tokens >= 0
    out, expected = cm.grouped_mlp(cm.dispatch(x, routing), packed, routing)[live], expected[live]
    if torch._C._len_torch_dispatch_stack() > 0:  # the reference
        rtol = 16 * torch.finfo(x.dtype).eps
        scale = expected.abs().max().item() if len(expected) else 0.0
        torch.testing.assert_close(out, expected, rtol=rtol, atol=rtol * scale, equal_nan=True)
    else:
        assert same_bits(out, expected)


@dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_activations(backend, poison, dtype, activation, bias):
    experts = make_experts(4, 40, 24, dtype, activation=activation, bias=bias)
    routing = routed([5, 0, 17, 1], alignment=4)
    check_mlp(normal((23, 40), dtype, scale=2.0), experts, routing)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_out(backend, poison, activation):
    """Inputs to +-60: clamps of swigluoai, tails of gelu, overflow of exp."""
    experts = make_experts(2, 16, 24, activation=activation)
    check_mlp(normal((12, 16), scale=20.0), experts, routed([7, 5]))
    check_mlp(
        normal((12, 16), torch.bfloat16, scale=20.0),
        make_experts(2, 16, 24, torch.bfloat16, activation=activation),
        routed([7, 5]),
    )


@dtypes
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "swigluoai"])
def test_interleaved_and_pack(backend, poison, dtype, activation):
    """Interleaved is concat with its rows shuffled, and concat() changes no bit."""
    routing = routed([9, 3, 0, 14], alignment=2)
    x = normal((26, 33), dtype)
    concat = make_experts(4, 33, 19, dtype, activation=activation, bias=True)
    order = torch.arange(38).view(2, 19).t().reshape(-1)
    interleaved = replace(
        concat,
        gate_up_proj=concat.gate_up_proj[:, order],
        gate_up_bias=concat.gate_up_bias[:, order],
        layout="interleaved",
    )
    live = routing.row_tokens >= 0
    expected = check_mlp(x, concat, routing)[live]
    for experts in [interleaved, interleaved.concat(), concat.concat()]:
        assert same_bits(check_mlp(x, experts, routing)[live], expected)


def test_concat_shares_what_is_dense(backend):
    experts = make_experts(3, 8, 4)
    dense = experts.concat()
    assert dense.gate_up_proj.data_ptr() == experts.gate_up_proj.data_ptr()
    assert dense.down_proj.data_ptr() == experts.down_proj.data_ptr()
    assert dense.layout == "concat"
    assert dense.concat().layout == "concat"


@dtypes
@pytest.mark.parametrize(
    ("hidden", "inner"),
    [(1, 1), (1, 9), (9, 1), (3, 5), (7, 33), (100, 37), (64, 48), (65, 63), (129, 17), (16, 130)],
)
def test_any_h_and_f(backend, poison, dtype, hidden, inner):
    experts = make_experts(3, hidden, inner, dtype, bias=hidden % 2 == 1)
    check_mlp(normal((21, hidden), dtype), experts, routed([13, 1, 7]))


@dtypes
@pytest.mark.parametrize("rows", [*range(1, 20), 31, 32, 33, 47, 64, 65, 97, 130])
def test_rows_per_expert(backend, poison, dtype, rows):
    """Every remainder of a row tile, in front of and behind a full one."""
    experts = make_experts(2, 32, 32, dtype)
    check_mlp(normal((rows + 16, 32), dtype), experts, routed([rows, 16]))


@dtypes
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_zero_row_experts_and_one_full(backend, poison, dtype, layout):
    for counts in [[0, 0, 40, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]:
        experts = make_experts(4, 24, 16, dtype)
        x = normal((sum(counts), 24), dtype)
        check_mlp(x, experts, routed(counts, alignment=8, layout=layout))


def test_sixty_experts(backend, poison):
    counts = [(e * 7) % 5 for e in range(60)]
    check_mlp(normal((sum(counts), 20)), make_experts(60, 20, 12), routed(counts))


@dtypes
def test_strided_input(backend, poison, dtype):
    """x, weights and biases may have any strides."""
    dense = make_experts(3, 24, 16, dtype, bias=True)
    routing = routed([6, 0, 9])
    x = normal((15, 24), dtype)
    expected = cm.grouped_mlp(x, dense, routing)

    def stretched(tensor):
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]

    def transposed(tensor):
        return tensor.mT.contiguous().mT

    strided = replace(
        dense,
        gate_up_proj=transposed(dense.gate_up_proj),
        down_proj=stretched(dense.down_proj),
        gate_up_bias=stretched(dense.gate_up_bias),
        down_bias=stretched(dense.down_bias),
    )
    for view in [x, stretched(x), x.t().contiguous().t(), x.repeat_interleave(2, 0)[::2]]:
        for experts in [dense, strided, strided.pack()]:
            out = cm.grouped_mlp(view, experts, routing)
            # Plain PyTorch's matmul may round differently for other strides; ours may not.
            rtol = 4 * torch.finfo(dtype).eps if backend.name == "reference" else 0.0
            torch.testing.assert_close(out, expected, rtol=rtol, atol=rtol)


@dtypes
@every_case
def test_gather_is_dispatch(backend, poison, case, dtype):
    """Gathering through row_tokens gives the bits of the copy."""
    routing = cm.route(case.logits(), case.gating, case.capacity)
    x, experts = case.hidden(dtype), case.experts(dtype)
    live = routing.row_tokens >= 0
    arguments = (experts.gate_up_proj, experts.down_proj, None, None)
    arguments += (routing.expert_offsets, routing.tokens_per_expert)
    gathered = backend.grouped_mlp(x, *arguments, routing.row_tokens, "silu", "concat")
    copied = cm.grouped_mlp(cm.dispatch(x, routing), experts, routing)
    assert gathered.shape == copied.shape
    assert same_bits(gathered[live], copied[live])


@dtypes
def test_padding_reaches_nothing(backend, poison, dtype):
    """Padding rows hold NaN on the way in; live rows do not change."""
    routing = routed([5, 2, 11], alignment=16)
    experts = make_experts(3, 24, 16, dtype)
    rows = cm.dispatch(normal((18, 24), dtype), routing)
    padding = routing.row_tokens < 0
    outs = []
    for value in [float("nan"), 0.0]:
        rows[padding] = value
        outs.append(cm.grouped_mlp(rows, experts, routing)[~padding])
    assert outs[0].isfinite().all()
    assert same_bits(*outs)


@dtypes
def test_nan_stays_in_its_row(backend, poison, dtype):
    routing = routed([20, 9])
    experts = make_experts(2, 32, 24, dtype)
    x = normal((29, 32), dtype)
    clean = cm.grouped_mlp(cm.dispatch(x, routing), experts, routing)
    x[11, 3] = float("nan")
    x[17, 0] = float("inf")
    out = cm.grouped_mlp(cm.dispatch(x, routing), experts, routing)
    dirty = (routing.row_tokens == 11) | (routing.row_tokens == 17)
    assert out[routing.row_tokens == 11].isnan().all()
    assert same_bits(out[~dirty], clean[~dirty])


@dtypes
def test_experts_do_not_read_each_other(backend, poison, dtype):
    """NaN weights of an expert without rows reach nobody."""
    experts = make_experts(3, 16, 8, dtype)
    experts.gate_up_proj[1] = float("nan")
    experts.down_proj[1] = float("nan")
    routing = routed([4, 0, 6])
    assert cm.grouped_mlp(normal((10, 16), dtype), experts, routing).isfinite().all()


def test_identity_experts(backend, poison):
    """relu of the identity on positive numbers: the output is the input, exactly."""
    eye = torch.eye(12).expand(4, 12, 12)
    experts = cm.Experts(eye, eye, activation="relu_no_mul")
    x = normal((25, 12)).abs()
    routing = routed([9, 4, 0, 12])
    rows = cm.dispatch(x, routing)
    assert cm.grouped_mlp(rows, experts, routing).equal(rows)


def test_linear_in_the_last_weights(backend, poison):
    experts = make_experts(3, 16, 8)
    routing = routed([4, 3, 6])
    x = normal((13, 16))
    once = cm.grouped_mlp(x, experts, routing)
    twice = cm.grouped_mlp(x, replace(experts, down_proj=experts.down_proj * 2), routing)
    assert twice.equal(once * 2)


def test_accumulates_in_float32(backend, poison):
    """4096 times 2**-12: a bf16 sum would stop growing at 2**-4, an fp16 one at 2**-1."""
    for dtype in [torch.bfloat16, torch.float16]:
        up = torch.ones(1, 1, 4096, dtype=dtype)
        down = torch.ones(1, 4096, 1, dtype=dtype)
        experts = cm.Experts(up, down, activation="relu_no_mul")
        out = cm.grouped_mlp(torch.ones(2, 4096, dtype=dtype) / 4096, experts, routed([2]))
        assert (out == 1).all()


def test_weights_of_another_dtype_are_refused(backend):
    routing = routed([2, 3])
    with pytest.raises(TypeError, match="x must be float32"):
        cm.grouped_mlp(normal((5, 8), torch.bfloat16), make_experts(2, 8, 4), routing)
