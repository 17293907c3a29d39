"""How much longer the busiest device works than the others, and what a capacity makes of that.

A layer under expert parallelism is done when its busiest device is. With S source ranks, each of
which bounds the pairs of its own tokens (arXiv 2503.05066, section 4), the experts' time shrinks by
at most ``S = max_r sum(n_e) / max_r sum(min(n_e, C))``, sums over the experts e of device r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import FLOATS, require_choice, require_int
from ..capacity import Capacity
from ..routing import Routing
from .placement import Placement, check_ranks
from .straggler_counts import Counts, as_loads, counts_of_loads, counts_of_routings
from .straggler_devices import rows_by_device, rows_on_the_wire


@dataclass(frozen=True)
class Load:
    """Rows that are run, one per (token, expert) pair; all numbers are sums over steps.

    Attributes:
        rows: of all experts.
        busiest_expert: of the busiest expert of each step.
        busiest_device: of the busiest device of each step.
        wire: rows that each rank sends in dispatch and combine together; it receives as many. None
            where the source ranks are not known.
        busiest_wire: of the rank that sends most in each step.
    """

    rows: int
    busiest_expert: int
    busiest_device: int
    wire: tuple[int, ...] | None
    busiest_wire: int | None


@dataclass(frozen=True)
class StragglerReport:
    """What :func:`straggler` finds.

    Attributes:
        devices: D.
        num_experts: E.
        steps: how many were summed.
        before: what the top-k asks for.
        after: what is run under the capacity.
        extra: rows of ``after`` that no top-k asked for (Expanded Drop).
        extra_wire: rows that these add to the wire; 0 where only own experts are offered.
        exact: False where ``extra`` and ``dropped`` may both be larger by the same number: loads
            alone don't say which pairs of the top-k the extra ones displace.
        row_bytes: of one row on the wire; None where no hidden size was given.
    """

    devices: int
    num_experts: int
    steps: int
    before: Load
    after: Load
    extra: int
    extra_wire: int | None
    exact: bool
    row_bytes: int | None

    @property
    def dropped(self) -> int:
        """Pairs of the top-k that are not run."""
        return self.before.rows - (self.after.rows - self.extra)

    @property
    def dropped_share(self) -> float:
        return _ratio(self.dropped, self.before.rows) or 0.0

    @property
    def expert_before(self) -> float | None:
        """Rows of the busiest expert over the mean that is asked for; None where none is."""
        return _ratio(self.before.busiest_expert * self.num_experts, self.before.rows)

    @property
    def expert_after(self) -> float | None:
        return _ratio(self.after.busiest_expert * self.num_experts, self.before.rows)

    @property
    def device_before(self) -> float | None:
        """Rows of the busiest device over the mean that is asked for; None where none is."""
        return _ratio(self.before.busiest_device * self.devices, self.before.rows)

    @property
    def device_after(self) -> float | None:
        return _ratio(self.after.busiest_device * self.devices, self.before.rows)

    @property
    def expert_bound(self) -> float | None:
        """The most that a step which waits for the busiest expert gains; None: nothing is left."""
        return _ratio(self.before.busiest_expert, self.after.busiest_expert)

    @property
    def bound(self) -> float | None:
        """The most that a step which waits for the busiest device gains; None: nothing is left."""
        return _ratio(self.before.busiest_device, self.after.busiest_device)

    def wire_bytes(self, load: Load) -> tuple[int, ...] | None:
        """Bytes that each rank sends in dispatch and combine; None where that is not known."""
        if load.wire is None or self.row_bytes is None:
            return None
        return tuple(rows * self.row_bytes for rows in load.wire)

    def busiest_wire_bytes(self, load: Load) -> int | None:
        """Bytes of the rank that sends most in each step, summed over steps."""
        if load.busiest_wire is None or self.row_bytes is None:
            return None
        return load.busiest_wire * self.row_bytes


def straggler(
    routing: Routing | Sequence[Routing] | Tensor | Any,
    devices: int,
    placement: Placement | None = None,
    capacity: Capacity | None = None,
    *,
    top_k: int | None = None,
    hidden_size: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> StragglerReport:
    """Loads of experts and devices before and after capacity, and the bound of what that is worth.

    Args:
        routing: one :class:`Routing` per source rank, each with the capacity it was made with, or a
            single one of all tokens. Or whole numbers, the pairs that each rank's top-k asks of
            each expert: [S, E], [steps, S, E], or [E] where source ranks are not known. S is D or
            1; [layers, E] is ``loads[:, None]``. With S = 1 capacity is applied to all at once.
        devices: D.
        placement: which device holds which expert; contiguous, even shares where None.
        capacity: with loads: what every source rank applies to its own pairs. C is that of its own
            T = pairs / top_k tokens. ``local_experts`` is each rank's own, whatever it says.
        top_k: with loads and ``expand="local"``: pairs of a token.
        hidden_size, dtype: of the rows on the wire.

    Returns:
        Exact integers, and their ratios.

    Raises:
        TypeError, ValueError: naming the argument and what it expects.
    """
    require_int("devices", devices, minimum=1)
    row_bytes = None
    if hidden_size is not None:
        require_int("hidden_size", hidden_size, minimum=1)
        names = [str(each).removeprefix("torch.") for each in FLOATS]
        require_choice("dtype", str(dtype).removeprefix("torch."), names)
        row_bytes = hidden_size * dtype.itemsize
    counts, where = _counts(routing, devices, placement, capacity, top_k)
    extra_wire = rows_on_the_wire(rows_by_device(counts.extra, where))
    steps, _, num_experts = counts.asked.shape
    return StragglerReport(
        devices,
        num_experts,
        steps,
        _load(counts.asked, where),
        _load(counts.rows, where),
        int(counts.extra.sum()),
        None if extra_wire is None else int(extra_wire.sum()),
        counts.exact,
        row_bytes,
    )


def _counts(
    routing: Any,
    devices: int,
    placement: Placement | None,
    capacity: Capacity | None,
    top_k: int | None,
) -> tuple[Counts, Placement]:
    """The pairs, and where their experts are."""
    routings = [routing] if isinstance(routing, Routing) else routing
    is_routed = isinstance(routings, list | tuple) and len(routings) > 0
    if is_routed and any(isinstance(each, Routing) for each in routings):
        if capacity is not None:
            raise ValueError("capacity goes with loads: a Routing has been made with its own")
        counts = counts_of_routings(routings)
        where = _placed(counts.asked, devices, placement)
    else:
        asked = as_loads(routing)
        where = _placed(asked, devices, placement)
        counts = counts_of_loads(asked, capacity, where, top_k)
    return counts, where


def _placed(asked: Tensor, devices: int, placement: Placement | None) -> Placement:
    """The placement, checked."""
    _, sources, num_experts = asked.shape
    if sources not in (1, devices):
        raise ValueError(
            f"routing must be of {devices} source ranks, one per device, or of 1, all together,"
            f" got {sources} (loads [layers, E] are loads[:, None])"
        )
    if placement is None:
        return Placement.even(num_experts, devices)
    check_ranks(placement, num_experts, devices)
    return placement


def _load(rows: Tensor, placement: Placement) -> Load:
    by_device = rows_by_device(rows, placement)
    wire = rows_on_the_wire(by_device)
    return Load(
        rows=int(rows.sum()),
        busiest_expert=int(rows.sum(1).amax(1).sum()),
        busiest_device=int(by_device.sum(1).amax(1).sum()),
        wire=None if wire is None else tuple(wire.sum(0).tolist()),
        busiest_wire=None if wire is None else int(wire.amax(1).sum()),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
