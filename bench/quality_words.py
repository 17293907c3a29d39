"""Cases and numbers as the tables write them."""

from __future__ import annotations

from capmoe_kernels import Capacity

from .quality_settings import Case
from .quality_statistics import Estimate

_POLICIES = {
    "score": "score",
    "keep_first": "keep first",
    "keep_last": "keep last",
    "random": "random",
}


def name(case: Case) -> str:
    """Without factor, gate and number of ranks, which the tables say elsewhere."""
    if case.skipped:
        return f"skip the {case.skipped} least loaded experts of each layer"
    capacity = case.capacity
    if capacity is None:
        return "dropless"
    return ", ".join([_policy(capacity), *_more(capacity)])


def _policy(capacity: Capacity) -> str:
    text = _POLICIES[capacity.policy]
    return text + (" (weight)" if capacity.drop_score == "weight" else "")


def _more(capacity: Capacity) -> list[str]:
    words = []
    if capacity.scope == "device":
        words.append("per device")
    if capacity.local_experts is not None:
        start, stop = capacity.local_experts
        words.append(f"+ {stop - start} local")
    if capacity.expand == "rank":
        words.append(f"+ next {capacity.extra}")
    if capacity.expand_priority == "topk_first":
        words.append("top-k first")
    if capacity.max_experts_per_token is not None:
        words.append(f"at most {capacity.max_experts_per_token} per token")
    if capacity.reroute_rounds > 1:
        words.append(f"{capacity.reroute_rounds} rounds")
    return words


def signed(estimate: Estimate) -> str:
    """``+0.190 [0.182, 0.198]``; a small one with a decimal more."""
    decimals = 3 if abs(estimate.value) >= 0.0095 else 4
    value, low, high = (
        f"{round(number, decimals) + 0.0:{sign}.{decimals}f}"  # + 0.0: there is no -0.0000
        for number, sign in zip((estimate.value, estimate.low, estimate.high), "+--", strict=True)
    )
    return f"{value} [{low}, {high}]"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def times(bound: float) -> str:
    return f"{bound:.2f}x"


def table(header: list[str], body: list[list[str]]) -> str:
    """Markdown; the first column is text, the others are numbers."""
    return _markdown([header, ["---", *["---:"] * (len(header) - 1)], *body])


def text_table(header: list[str], body: list[list[str]]) -> str:
    """Markdown; words in every column."""
    return _markdown([header, ["---"] * len(header), *body])


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
