"""Expert parallelism: experts on the ranks of a group, their load bounded before it travels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from ..capacity import Capacity
from ..experts import Experts
from ..gating import Gating
from ..layer import _grouped_mlp
from ..routing import Routing, route
from .agreement import gather, group_timeout, own_store, refusing, require_same, store_host
from .exchange import CountedExchange, Dispatched, Exchange, FixedExchange, Handle
from .own_capacity import own_capacity
from .placement import Placement
from .terms import ExchangeKind, Terms, numbers
from .watch import Watch
from .wire import Wire


class ExpertParallel:
    """A Mixture-of-Experts layer's experts on the D ranks of a group.

    Every rank routes its own tokens and bounds the load they make before anything is sent: "to
    avoid additional communication, capacity constraints apply to tokens within each local device"
    (arXiv 2503.05066, section 4). So an expert gets at most C rows from each rank, and:

    - a capacity that bounds every expert (``factor`` or ``limit``, of scope ``"expert"``) is one
      equal-split all-to-all of static shape: no sizes are exchanged, the host waits for nothing, a
      CUDA graph can hold it;
    - dropless and device scope exchange counts first, for which the host waits, then the rows.

    Building one is collective: the ranks compare these arguments and raise where they differ, and
    after that the shape of the exchange is the same on all, whatever a call is given. All calls are
    collective, too: every rank makes the same ones, in the same order, with any number of tokens.

    Args:
        group: NCCL for CUDA tensors, gloo for the CPU's; None is the default process group.
        num_experts: E.
        placement: who holds what; None is ``Placement.even(E, D)``. A rank that holds an expert
            keeps its own rows; the others deal theirs out among the expert's holders, row by row.
        gating: of all calls.
        capacity: of all calls that give none; None is dropless. ``seed`` plus the rank is each
            rank's seed, and ``local_experts`` is replaced by the rank's own (Expanded Drop's extra
            rows then never leave their rank), which must be a contiguous range.
        hidden_size, dtype: of the tokens.
        max_tokens: for the static shape: the most tokens this rank brings to a call; the largest
            rank's number counts.
        exchange: ``"counted"``: counts first whatever the capacity, so that only kept rows travel.
        timeout: seconds after which waiting for the others fails; None is the group's.

    Raises:
        TypeError, ValueError: naming the argument, and where ranks differ, each value's ranks.
        RankError: naming the ranks that did not come.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        num_experts: int,
        placement: Placement | None = None,
        *,
        gating: Gating,
        capacity: Capacity | None = None,
        hidden_size: int,
        dtype: torch.dtype,
        max_tokens: int | None = None,
        exchange: ExchangeKind = "auto",
        timeout: float | None = None,
    ):
        group = dist.group.WORLD if group is None else group
        if group is None:
            raise ValueError("group must be given where init_process_group was not called")
        rank, num_ranks = group.rank(), group.size()
        seconds = group_timeout(group) if timeout is None else timeout
        store = own_store(group)
        with refusing(store, rank):
            even = Placement.even(num_experts, num_ranks)
            capacity = Capacity() if capacity is None else capacity
            shape = hidden_size, dtype, max_tokens
            terms = Terms(num_experts, placement or even, gating, capacity, *shape, exchange)
            terms.check(num_ranks)
            self._wire = Wire(terms.placement, rank)
            own_capacity(capacity, rank, self._wire.own_experts)
        gathered = gather(store, rank, num_ranks, [terms.in_words(), max_tokens], seconds)
        require_same([words for words, _ in gathered])
        watch = Watch(store, store_host(group), rank, num_ranks, seconds)
        self._exchange: Exchange = CountedExchange(group, self._wire, watch)
        if terms.is_fixed:
            terms = replace(terms, max_tokens=max(most for _, most in gathered))
            sizes = terms.capacity_rows or 0, hidden_size * dtype.itemsize
            self._exchange = FixedExchange(group, self._wire, watch, *sizes)
        self._terms = terms
        self._guard = watch.guard

    def moe(
        self,
        hidden_states: Tensor,
        router_logits: Tensor,
        local_experts: Experts | None,
        gating: Gating | None = None,
        capacity: Capacity | None = None,
        *,
        token_mask: Tensor | None = None,
        token_priority: Tensor | None = None,
        selection_bias: Tensor | None = None,
        shared_expert: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The layer for this rank's T tokens: route, dispatch, own experts, combine.

        Args:
            hidden_states: [T, H] of the agreed dtype; T is any number, 0 included.
            router_logits: [T, E]. A NaN forbids its expert, as everywhere but in
                :func:`capmoe_kernels.route` on a CPU, where it would keep one rank from coming.
            local_experts: this rank's, in the order of its placement, packed or not; None where it
                holds none.
            gating: None, or the one this was built with.
            capacity: None is the one this was built with; see :meth:`route`.
            token_mask, token_priority, selection_bias: see :func:`capmoe_kernels.route`.
            shared_expert: [T, H] to [T, H]; runs on ``hidden_states`` while the rows travel, and is
                added to the result.

        Returns:
            [T, H].

        Raises:
            TypeError, ValueError: naming the argument; the other ranks get a RankError.
            RankError: another rank died, stalled or raised.
        """
        with self._guard():
            self._terms.check_hidden(hidden_states)
            self._terms.check_experts(local_experts, len(self.local_expert_ids))
        routing = self.route(
            router_logits,
            gating,
            capacity,
            token_mask=token_mask,
            token_priority=token_priority,
            selection_bias=selection_bias,
        )
        handle = self.dispatch_async(hidden_states, routing)
        with self._guard():
            shared = None if shared_expert is None else shared_expert(hidden_states)
            dispatched = handle.wait()
            y = self.run_experts(dispatched, local_experts)
        out = self.combine(y, dispatched)
        return out if shared is None else out + shared

    def route(
        self,
        router_logits: Tensor,
        gating: Gating | None = None,
        capacity: Capacity | None = None,
        *,
        token_mask: Tensor | None = None,
        token_priority: Tensor | None = None,
        selection_bias: Tensor | None = None,
    ) -> Routing:
        """:func:`capmoe_kernels.route` of this rank's tokens, as :class:`ExpertParallel` says.

        Args:
            capacity: None, or another one: any where counts are exchanged; where the exchange is
                fixed, one that bounds every expert to no more rows.
        """
        with self._guard():
            capacity = self._terms.capacity if capacity is None else capacity
            self._terms.check_route(router_logits, gating, capacity)
            return route(
                numbers(router_logits),
                self._terms.gating,
                own_capacity(capacity, self._wire.rank, self._wire.own_experts),
                token_mask=token_mask,
                token_priority=token_priority,
                selection_bias=selection_bias,
            )

    def dispatch(self, hidden_states: Tensor, routing: Routing) -> Dispatched:
        """:meth:`dispatch_async`, waited for."""
        return self.dispatch_async(hidden_states, routing).wait()

    def dispatch_async(self, hidden_states: Tensor, routing: Routing) -> Handle[Dispatched]:
        """Start to send every kept row to a rank that holds its expert.

        Where counts are exchanged, they are before this returns; the rows travel afterwards.

        Args:
            hidden_states: [T, H] of the agreed dtype.
            routing: of the same T tokens, from :meth:`route`.

        Returns:
            A handle whose ``wait()`` gives the :class:`Dispatched` rows.

        Raises:
            TypeError, ValueError, RankError: see :meth:`moe`.
        """
        with self._guard():
            self._terms.check_hidden(hidden_states)
            self._terms.check_routing(routing, hidden_states.shape[0])
            return self._exchange.dispatch(hidden_states, routing)

    def run_experts(self, dispatched: Dispatched, local_experts: Experts | None) -> Tensor:
        """This rank's experts on what it received, read through ``row_tokens`` where it lies.

        Returns:
            [N, H], N = W, grouped by own expert as ``dispatched.routing`` says; it is what
            ``cm.grouped_mlp(cm.dispatch(rows, routing), experts, routing)`` gives.
        """
        self._terms.check_experts(local_experts, len(self.local_expert_ids))
        if local_experts is None:
            return torch.empty_like(dispatched.rows)
        routing = dispatched.routing
        return _grouped_mlp(dispatched.rows, local_experts, routing, routing.row_tokens)

    def combine(self, y: Tensor, dispatched: Dispatched) -> Tensor:
        """:meth:`combine_async`, waited for."""
        return self.combine_async(y, dispatched).wait()

    def combine_async(self, y: Tensor, dispatched: Dispatched) -> Handle[Tensor]:
        """Start to send the experts' outputs back to the tokens' ranks.

        Args:
            y: [N, H] of the agreed dtype, grouped as ``dispatched.routing`` says.
            dispatched: what they were computed from.

        Returns:
            A handle whose ``wait()`` gives [T, H], each token's outputs summed by weight, in
            float32 and in candidate order, as :func:`capmoe_kernels.combine` does.
        """
        with self._guard():
            self._terms.check_outputs(y, dispatched.routing)
            return self._exchange.combine(y, dispatched)

    @property
    def placement(self) -> Placement:
        return self._terms.placement

    @property
    def local_expert_ids(self) -> tuple[int, ...]:
        """This rank's experts, in the order in which ``local_experts`` must hold them."""
        return self._wire.own_experts

    @property
    def capacity_rows(self) -> int | None:
        """C of the static shape, rows for each (source, expert); None where rows are counted."""
        return self._terms.capacity_rows
