"""What an evaluation shows, in sentences computed from its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .results import Evaluation, Result, compare


def conclusions(evaluation: Evaluation) -> list[str]:
    """Sentences for a reader who skips the table; what the grid cannot support is left out."""
    factor = main_factor(evaluation.results)
    chosen = [result for result in evaluation.results if _factor(result) == factor]
    plain = {r.setting.policy: r for r in chosen if r.setting and r.setting.expand == "none"}
    best = plain.get("score")
    sentences = [_imbalance(evaluation)]
    if best is not None:
        sentences += list(_bound(best, evaluation.num_devices))
        sentences += list(_policies(best, [r for name, r in plain.items() if name != "score"]))
        sentences += [
            _expanded(evaluation, best, result)
            for result in chosen
            if result.setting
            and result.setting.policy == "score"
            and result.setting.expand != "none"
        ]
    return sentences


def main_factor(results: Sequence[Result]) -> float | None:
    """The factor to talk about: the one nearest to 1, where an expert's bound is its fair share."""
    factors = {_factor(result) for result in results} - {None}
    return min(factors, key=lambda factor: abs((factor or 0.0) - 1.0), default=None)


def _factor(result: Result) -> float | None:
    return result.setting.factor if result.setting else None


def _imbalance(evaluation: Evaluation) -> str:
    layers = evaluation.dropless.layers
    peaks = [layer.load.expert_before or 0.0 for layer in layers]
    worst = max(range(len(peaks)), key=peaks.__getitem__)
    load = evaluation.dropless.load
    assert load is not None
    text = (
        f"Without capacity the busiest expert of layer {worst + 1} gets {peaks[worst]:.1f}x the"
        f" mean load ({min(peaks):.1f}x in the most even layer)"
    )
    if evaluation.num_devices > 1 and load.device_before is not None:
        text += (
            f"; with {evaluation.num_devices} devices of {_experts(evaluation)} experts each, the"
            f" busiest device gets {load.device_before:.1f}x the mean"
        )
    return text + "."


def _experts(evaluation: Evaluation) -> int:
    return evaluation.num_experts // evaluation.num_devices


def _bound(best: Result, num_devices: int) -> Iterator[str]:
    load = best.load
    if load is None or load.expert_bound is None or load.kept is None:
        return
    text = (
        f"At factor {_factor(best):g}, a step bound by its busiest expert is at most"
        f" {load.expert_bound:.1f}x shorter"
    )
    if num_devices > 1 and load.device_bound is not None:
        text += f", one bound by its busiest device at most {load.device_bound:.1f}x"
    yield f"{text}; {100 * (1 - load.kept):.0f} % of the (token, expert) pairs are dropped."


def _policies(best: Result, others: Sequence[Result]) -> Iterator[str]:
    words = {
        "score": "keeping the best-scored tokens",
        "keep_first": "keeping the first",
        "keep_last": "keeping the last",
        "random": "keeping random ones",
    }
    costs = [f"{words['score']} costs {_cost(best)} bits per byte"]
    costs += [f"{words[other.setting.policy]} {_cost(other)}" for other in others if other.setting]
    yield f"Which tokens an expert keeps at factor {_factor(best):g}: {', '.join(costs)}."


def _cost(result: Result) -> str:
    error = "" if result.change_error is None else f" ± {result.change_error:.3f}"
    return f"{result.change:+.3f}{error}"


def _expanded(evaluation: Evaluation, best: Result, expanded: Result) -> str:
    """Whether Expanded Drop helps here; a difference is one where it exceeds twice its error."""
    change, error = compare(evaluation, expanded, best)
    verdict = "makes no clear difference"
    if error is not None and abs(change) > 2 * error:
        verdict = "gains" if change < 0 else "loses"
        verdict += f" {abs(change):.4f} ± {error:.4f} bits per byte"
    extra = expanded.load.extra if expanded.load else None
    more = f", running {100 * extra:.0f} % more pairs" if extra else ""
    return (
        f"Filling free places with tokens of the expert's own device (Expanded Drop) {verdict}"
        f" against dropping alone{more}."
    )
