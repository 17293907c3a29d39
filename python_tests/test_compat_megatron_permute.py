"""compat.permute and unpermute against loops, and against Megatron-Core where that is there."""

from __future__ import annotations

import pytest
import torch

from capmoe_kernels.compat import apply_router_token_dropping, permute, unpermute
from cases import normal
from checks import same_bits
from compat_cases import EXPERTS as E
from compat_cases import TOP_K as K
from compat_cases import tables
from megatron_core import moe_utils

H = 16


def dropped(tokens=50, pad=False, factor=1.0):
    return apply_router_token_dropping(*tables(tokens), K, factor, "probs", pad)


def pairs_in_loops(routing_map, rows_per_expert=None):
    """[(expert, token)] of the rows, with others behind an expert's own where rows are a number."""
    pairs = []
    for e, column in enumerate(routing_map.t().tolist()):
        own = [t for t, there in enumerate(column) if there]
        others = [t for t, there in enumerate(column) if not there]
        tokens = own if rows_per_expert is None else (own + others)[:rows_per_expert]
        pairs += [(e, t) for t in tokens]
    return pairs


def check_permute(x, routing_map, probs, rows_per_expert=None, **options):
    pairs = pairs_in_loops(routing_map, rows_per_expert)
    rows, row_probs, indices = permute(x, routing_map, probs, **options)
    assert indices.dtype == torch.int64
    assert indices.tolist() == [t for _, t in pairs]
    assert same_bits(rows, x[indices])
    assert same_bits(row_probs, torch.tensor([probs[t, e] for e, t in pairs], dtype=probs.dtype))
    return rows, indices, pairs


def check_unpermute(y, indices, pairs, x, probs=None, **options):
    out = unpermute(y, indices, x.shape, probs, **options)
    truth = torch.zeros(x.shape, dtype=torch.float64)
    for row, (e, t) in zip(y.double(), pairs, strict=True):
        truth[t] += row * (1.0 if probs is None else float(probs[t, e]))
    assert out.dtype == y.dtype
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if y.dtype == torch.float32 else {}
    torch.testing.assert_close(out, truth.to(y.dtype), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 50])
def test_there_and_back(poison, tokens, dtype):
    probs, routing_map = dropped(tokens)
    x = normal((tokens, H), dtype, seed=1)
    count = routing_map.sum()
    for given in (None, int(count), count):
        rows, indices, pairs = check_permute(x, routing_map, probs, num_out_tokens=given)
    assert same_bits(permute(x, routing_map, fused=True)[0], rows)
    y = normal((len(pairs), H), dtype, seed=2)
    check_unpermute(y, indices, pairs, x, probs, routing_map=routing_map)
    check_unpermute(y, indices, pairs, x, routing_map=routing_map)
    check_unpermute(y, indices.int(), pairs, x)


@pytest.mark.parametrize("full", [True, False], ids=["padded_map", "columns_that_lack_tokens"])
def test_there_and_back_padded(poison, full):
    probs, routing_map = dropped(pad=full)
    per_expert = int(routing_map.sum(0).max())
    x, options = normal((50, H), seed=1), {"drop_and_pad": True}
    _, indices, pairs = check_permute(
        x, routing_map, probs, per_expert, num_out_tokens=E * per_expert, **options
    )
    assert len(pairs) == E * per_expert
    y = normal((len(pairs), H), seed=2)
    check_unpermute(y, indices, pairs, x, probs, routing_map=routing_map, **options)
    check_unpermute(y, indices, pairs, x, routing_map=routing_map, **options)
    check_unpermute(y, indices, pairs, x, **options)


def test_strides():
    probs, routing_map = dropped()
    x = normal((H, 50), seed=1).t()
    column_major = routing_map.t().contiguous().t()
    rows, indices, pairs = check_permute(x, column_major, probs)
    wide = torch.stack([rows, rows], 2)[..., 0]
    check_unpermute(wide, indices, pairs, x, probs, routing_map=column_major)


def test_a_known_number_of_rows_compiles():
    probs, routing_map = dropped()
    x, count = normal((50, H), seed=1), int(routing_map.sum())

    def there_and_back(x, routing_map, probs):
        rows, _, indices = permute(x, routing_map, probs, num_out_tokens=count)
        return unpermute(rows, indices, x.shape, probs, routing_map)

    compiled = torch.compile(there_and_back, backend="aot_eager", fullgraph=True)
    assert same_bits(compiled(x, routing_map, probs), there_and_back(x, routing_map, probs))


@pytest.mark.parametrize("pad", [False, True])
def test_it_is_megatrons_own(pad):
    theirs_module = moe_utils()
    probs, routing_map = dropped(pad=pad)
    x = normal((50, H), seed=1)
    options = {"num_out_tokens": int(routing_map.sum()), "drop_and_pad": pad}
    ours = permute(x, routing_map, probs, **options)
    theirs = theirs_module.permute(x, routing_map, probs, **options)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert mine.equal(other)
    y = normal((len(ours[0]), H), seed=2)
    back = (ours[2], x.shape, probs, routing_map)
    expected = theirs_module.unpermute(y, *back, drop_and_pad=pad)
    torch.testing.assert_close(unpermute(y, *back, drop_and_pad=pad), expected)


X, (PROBS, MAP) = normal((50, H), seed=1), tables()
ROWS, _, INDICES = permute(X, MAP)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (TypeError, "^tokens must be float32", {"tokens": X.double()}),
        (ValueError, "^tokens must have shape", {"tokens": X[1:]}),
        (ValueError, "^probs must have shape", {"probs": PROBS[1:]}),
        (ValueError, "^num_out_tokens must be 100, the pairs", {"num_out_tokens": 99}),
        (ValueError, "E \\* C with C at most T", {"num_out_tokens": 99, "drop_and_pad": True}),
        (ValueError, "E \\* C with C at most T", {"num_out_tokens": 408, "drop_and_pad": True}),
        (TypeError, "^num_out_tokens must be an int", {"num_out_tokens": 1.0}),
    ],
)
def test_border_of_permute(error, match, options):
    with pytest.raises(error, match=match):
        permute(**({"tokens": X, "routing_map": MAP} | options))


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (ValueError, "^restore_shape must be", {"restore_shape": (50, 17)}),
        (ValueError, "^sorted_indices must be from 0 to 48, got", {"restore_shape": (49, H)}),
        (ValueError, "^routing_map must be given with probs", {"probs": PROBS}),
        (ValueError, "^permuted_tokens must have 99 rows", {"routing_map": MAP.clone()}),
        (TypeError, "^probs must be float32", {"probs": PROBS.double(), "routing_map": MAP}),
        (ValueError, "must have E \\* C rows", {"routing_map": MAP, "drop_and_pad": True}),
    ],
)
def test_border_of_unpermute(error, match, options):
    if "99" in match:
        options["routing_map"][0, options["routing_map"][0].int().argmax()] = False
    arguments = {"permuted_tokens": ROWS, "sorted_indices": INDICES, "restore_shape": (50, H)}
    with pytest.raises(error, match=match):
        unpermute(**(arguments | options))
