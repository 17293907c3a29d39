"""The operator table: each op's schema, fake and reference, in pipeline order.

``capmoe::<op>`` is functional and knows nothing of the classes of the public API; routing.py and
layer.py check the arguments and call it. Sizes: T tokens, E experts, K candidate columns, N rows of
the packed buffer, H hidden size, F intermediate size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from ._checks import require_inference

OPS: list[str] = []


def _op(schema: str, layer: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define ``capmoe::<schema>``, served by the reference; the decorated function is its fake.

    ``layer``: a step of the layer, which each backend has; else a backend may leave it out.
    """
    name = schema[: schema.index("(")]
    if layer:
        OPS.append(name)
    torch.library.define(f"capmoe::{name}", schema[len(name) :])
    torch.library.impl(f"capmoe::{name}", "default", getattr(reference, name))
    torch.library.impl(f"capmoe::{name}", "Autograd", _refuse_grad(name))
    decorator: Callable[..., Any] = torch.library.register_fake(f"capmoe::{name}")
    return decorator


def _refuse_grad(name: str) -> Callable[..., Any]:
    """The op's Autograd kernel: there is no backward, so recording one is an error."""

    def kernel(*args: Any) -> Any:
        op = getattr(torch.ops.capmoe, name).default
        names = [argument.name for argument in op._schema.arguments]
        tensors = zip(names, args, strict=False)
        require_inference(**{n: value for n, value in tensors if isinstance(value, Tensor)})
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return kernel


_OVERLOADS: dict[str, Any] = {}


def run(name: str, *args: Any) -> Any:
    """Call ``capmoe::<name>`` on arguments that the public functions have checked.

    In eager mode this goes below autograd, whose kernel above would cost more than a small op.
    """
    if torch.compiler.is_compiling():
        return getattr(torch.ops.capmoe, name).default(*args)
    op = _OVERLOADS.get(name)
    if op is None:
        op = _OVERLOADS[name] = getattr(torch.ops.capmoe, name).default
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


# Scores every expert for every token and lists the token's candidates, best first: its top-k, then
# what Expanded Drop or rerouting may add. K = min(E, top_k + extra) or min(E, top_k + locals).
# -> expert_ids [T, K] int32, E where unused; weights [T, K] float32; scores [T, K] float32, what
#    capacity ranks by
@_op(
    "gate(Tensor router_logits, Tensor? selection_bias, int top_k, str scoring, str renormalize,"
    " float scaling, int num_groups, int topk_groups, str group_score, str drop_score, str expand,"
    " int extra, int local_start, int local_stop)"
    " -> (Tensor expert_ids, Tensor weights, Tensor scores)"
)
def _(
    router_logits: Tensor,
    selection_bias: Tensor | None,
    top_k: int,
    scoring: str,
    renormalize: str,
    scaling: float,
    num_groups: int,
    topk_groups: int,
    group_score: str,
    drop_score: str,
    expand: str,
    extra: int,
    local_start: int,
    local_stop: int,
) -> tuple[Tensor, Tensor, Tensor]:
    num_tokens, num_experts = router_logits.shape
    more = local_stop - local_start if expand == "local" else extra
    shape = (num_tokens, min(num_experts, top_k + more))
    weights = router_logits.new_empty(shape, dtype=torch.float32)
    return weights.to(torch.int32), weights, torch.empty_like(weights)


# Drops what exceeds capacity and gives every kept pair a row: prefix sums in token order.
# topk_ids [T, K] int32 or int64, anything outside [0, E) unused; weights, scores [T, K] float32;
# token_mask [T] bool; token_priority [T] int64. factor is (numerator, denominator); num_rows is N,
# at least what bounds.select_rows says.
# -> the fields of Routing
@_op(
    "select(Tensor topk_ids, Tensor weights, Tensor scores, Tensor? token_mask,"
    " Tensor? token_priority, int num_experts, int top_k, int[]? factor, int? limit, str rounding,"
    " str policy, str expand_priority, int? max_experts_per_token, int reroute_rounds,"
    " int experts_per_budget, int seed, float? kept_weight_sum, str layout, int row_alignment,"
    " SymInt num_rows)"
    " -> (Tensor expert_ids, Tensor weights, Tensor rows, Tensor row_tokens, Tensor expert_offsets,"
    " Tensor tokens_per_expert, Tensor demand_per_expert)"
)
def _(
    topk_ids: Tensor,
    weights: Tensor,
    scores: Tensor,
    token_mask: Tensor | None,
    token_priority: Tensor | None,
    num_experts: int,
    top_k: int,
    factor: Sequence[int] | None,
    limit: int | None,
    rounding: str,
    policy: str,
    expand_priority: str,
    max_experts_per_token: int | None,
    reroute_rounds: int,
    experts_per_budget: int,
    seed: int,
    kept_weight_sum: float | None,
    layout: str,
    row_alignment: int,
    num_rows: int,
) -> tuple[Tensor, ...]:
    pairs = torch.empty_like(topk_ids, dtype=torch.int32, memory_format=torch.contiguous_format)
    counts = topk_ids.new_empty(num_experts, dtype=torch.int32)
    return (
        pairs,
        pairs.to(torch.float32),
        torch.empty_like(pairs),
        topk_ids.new_empty(num_rows, dtype=torch.int32),
        topk_ids.new_empty(num_experts + 1, dtype=torch.int32),
        counts,
        torch.empty_like(counts),
    )


# hidden_states [T, H], row_tokens [N] int32 -> [N, H]; padding rows are unspecified
@_op("dispatch(Tensor hidden_states, Tensor row_tokens) -> Tensor")
def _(hidden_states: Tensor, row_tokens: Tensor) -> Tensor:
    return hidden_states.new_empty(row_tokens.shape[0], hidden_states.shape[1])


# The experts on their rows. x is [N, H], or [T, H] to be gathered through row_tokens [N].
# gate_up_proj [E, 2F, H] or, for "..._no_mul" activations, [E, F, H]; down_proj [E, H, F]
# -> [N, H]; rows of no expert are unspecified
@_op(
    "grouped_mlp(Tensor x, Tensor gate_up_proj, Tensor down_proj, Tensor? gate_up_bias,"
    " Tensor? down_bias, Tensor expert_offsets, Tensor tokens_per_expert, Tensor? row_tokens,"
    " str activation, str layout) -> Tensor"
)
def _(
    x: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    expert_offsets: Tensor,
    tokens_per_expert: Tensor,
    row_tokens: Tensor | None,
    activation: str,
    layout: str,
) -> Tensor:
    rows = x.shape[0] if row_tokens is None else row_tokens.shape[0]
    return x.new_empty(rows, x.shape[1])


# The experts' weights as the CPU's kernels read them fastest: sixteen rows side by side, zeros
# where N or K come out short; of bfloat16 two columns lie together. Where gated, blocks of sixteen
# gate rows and of the same sixteen up rows alternate.
# weights [E, N, K] -> [E, blocks, K rounded up, 16], for grouped_mlp and moe with layout "packed"
@_op("pack(Tensor weights, bool gated, str layout) -> Tensor", layer=False)
def _(weights: Tensor, gated: bool, layout: str) -> Tensor:
    experts, rows, columns = weights.shape
    halves = 2 if gated else 1
    align = 32 if weights.dtype == torch.bfloat16 else 16
    blocks = -(-rows // halves // 16) * halves
    return weights.new_empty(experts, blocks, -(-columns // align) * align, 16)


# y [N, H], rows [T, K] int32, weights [T, K] float32 -> [T, H], summed in float32 in column order
@_op("combine(Tensor y, Tensor rows, Tensor weights) -> Tensor")
def _(y: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    return y.new_empty(rows.shape[0], y.shape[1])


# The whole layer, rows packed: gate, select, grouped_mlp through row_tokens, combine; kept weights
# sum to scaling where renormalize is "kept". Arguments as above, token_priority int64.
# -> [T, H]
@_op(
    "moe(Tensor hidden_states, Tensor router_logits, Tensor? selection_bias, int top_k,"
    " str scoring, str renormalize, float scaling, int num_groups, int topk_groups,"
    " str group_score, str drop_score, str expand, int extra, int local_start, int local_stop,"
    " Tensor? token_mask, Tensor? token_priority, int[]? factor, int? limit, str rounding,"
    " str policy, str expand_priority, int? max_experts_per_token, int reroute_rounds,"
    " int experts_per_budget, int seed, SymInt num_rows, Tensor gate_up_proj, Tensor down_proj,"
    " Tensor? gate_up_bias, Tensor? down_bias, str activation, str layout) -> Tensor"
)
def _(hidden_states: Tensor, *_: Any) -> Tensor:
    return hidden_states.new_empty(hidden_states.shape)
