"""One number of tokens: every answer is checked, and those that are right are timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from .answers import Answers, busiest
from .cases import Case
from .contenders import Contender, Run, first_line
from .results import Cell, Result
from .timing import Call, Clock, take_turns


def measure_cell(
    case: Case,
    who: Sequence[Contender],
    ready: dict[str, Run],
    absent: dict[str, str],
    clock: Clock,
    seconds: float,
    before: Callable[[str], None] | None,
) -> Cell:
    """Check and time the ``ready`` runs by name; the ``absent`` get their reason."""
    answers, calls, results = Answers(case), dict[str, Call](), list[Result]()
    for each in who:
        result = Result(each.key, each.name, each.factor)
        if each.name in absent:
            results.append(replace(result, reason=absent[each.name]))
            continue
        result = _judged(result, each, case, ready[each.name], answers)
        results.append(result)
        if result.reason is None:
            calls[each.name] = partial(ready[each.name], case)
    samples = take_turns(calls, clock, seconds, before)
    demand = case.routing.demand_per_expert
    timed = [replace(each, samples=tuple(samples.get(each.name, ()))) for each in results]
    return Cell(case.tokens, demand.tolist(), busiest(demand, demand), timed)


def _judged(result: Result, who: Contender, case: Case, run: Run, answers: Answers) -> Result:
    """With its error and work, or with the reason why it is not to be timed."""
    answer = answers.of(who)
    try:
        out = run(case)
        error = answer.judge.error(out)
        complaint = answer.judge.complaint(out, who.slack)
    except Exception as failure:  # other libraries raise what they like
        return replace(result, reason=first_line(failure))
    if complaint is not None:
        return replace(result, reason=f"wrong answer: {complaint}")
    asked = case.tokens * case.gating.top_k
    rows = who.rows(case) if answer.kept_rows is None else answer.kept_rows
    work = 1.0 if rows is None else rows / asked
    return replace(result, error=error, rows=rows, work=work, busiest=answer.busiest)
