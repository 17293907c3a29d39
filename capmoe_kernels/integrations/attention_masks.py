"""Which tokens of a call are real, read from the ``attention_mask`` of a Transformers model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def past_length(cache: Any, positions: Tensor | None) -> int | Tensor:
    """Tokens that were seen before this call; a tensor where only the device knows.

    Args:
        cache: ``past_key_values``.
        positions: [S], the ``cache_position`` that Transformers 4 hands down.
    """
    if positions is not None:
        return positions[0]
    if not hasattr(cache, "get_seq_length"):
        return 0
    past = cache.get_seq_length()
    # A static cache counts on in place while the model runs.
    return past.clone() if isinstance(past, Tensor) else int(past)


def of_this_call(mask: Tensor, length: int, cache: Any, positions: Tensor | None) -> Tensor:
    """[B, S] bool of the call's ``length`` tokens, from a [B, past + S] mask or a longer one.

    Transformers reads a mask from where the call begins, and without a cache from its start.
    """
    if mask.shape[1] == length:
        return mask.bool()
    older = cache is not None and not hasattr(cache, "get_seq_length")  # a tuple of tensors
    if positions is None and older:
        return mask[:, -length:].bool()
    past = past_length(cache, positions)
    if isinstance(past, Tensor):
        columns = past.to(mask.device) + torch.arange(length, device=mask.device)
        return mask.index_select(1, columns).bool()
    return mask[:, past : past + length].bool()


def from_causal(mask: Any, length: int, past: int | Tensor) -> Tensor | None:
    """[B, S] bool from the mask that Transformers makes of a [B, past + S] one; None: not from it.

    ``generate`` hands a model with a static cache the finished causal mask, [B, 1, S, K], bool or
    added to the scores, or a dict with one for each kind of attention. A token is real where it
    may see itself. That the whole mask is the one of these tokens is looked at, and so waits for
    the device: of a mask that was made by another rule nothing is guessed.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[1:3] != (1, length):
        return None
    start = int(past)
    if start + length > mask.shape[3]:
        return None
    visible = mask if mask.dtype == torch.bool else mask == 0
    if mask.dtype != torch.bool and not bool((visible | (mask <= _HIDDEN)).all()):
        return None
    own = visible[:, 0, :, start : start + length]
    real = own.diagonal(dim1=1, dim2=2)
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return real if torch.equal(own, causal & real[:, None]) else None


_HIDDEN = -1e4  # added to a score it leaves nothing of it; float16's least number is below, too
