"""Which tokens of a model's call are real: blocks see hidden states only, the model its mask."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .attention_masks import from_causal, of_this_call, past_length


class TokenMask:
    """The real tokens of the call that a model is in.

    Attributes:
        given: [B, S] bool from the user, which goes before what the model is called with.
        decode_tokens: a call with at most this many tokens per sequence is a step of decoding.
        router_logits: whether a call may ask for them.
    """

    def __init__(self, decode_tokens: int = 1, router_logits: bool = False) -> None:
        self.given: Tensor | None = None
        self.decode_tokens, self.router_logits = decode_tokens, router_logits
        self._names: list[str] = []  # of the model's arguments, in order
        self._length: int | None = None  # S of the call
        self._of_call: Tensor | None = None  # [B, S] bool
        self._unread: Any = None  # a mask of another kind, with the tokens before this call
        self._past: int | Tensor = 0

    def follow(self, model: nn.Module) -> list[RemovableHandle]:
        """Learn of every call of ``model``, which takes ``attention_mask`` by name."""
        self._names = list(inspect.signature(type(model).forward).parameters)[1:]
        return [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
        ]

    def is_decoding(self, hidden_states: Tensor) -> bool:
        """Whether no sequence of the call has more than ``decode_tokens``."""
        if hidden_states.dim() == 3:
            return hidden_states.shape[1] <= self.decode_tokens
        return self._length is not None and self._length <= self.decode_tokens

    def of(self, hidden_states: Tensor, *, bounded: bool, counted: bool = False) -> Tensor | None:
        """[T] bool for the tokens of ``hidden_states``; None: all are real.

        Args:
            hidden_states: [B, S, H] or [T, H].
            bounded: they compete for a capacity.
            counted: they are counted.

        Raises:
            ValueError: the mask does not fit, or where ``bounded``, it can't be read.
        """
        mask = self._of_call if self.given is None else self.given
        if mask is None and self._unread is not None and (bounded or counted):
            mask = self._read()
            if mask is None and bounded:
                raise ValueError(
                    "attention_mask must be [B, S] where a capacity bounds the call, since padding"
                    f" must not compete for it, got {_in_words(self._unread)}; say which tokens are"
                    " real with real_tokens(model, token_mask)"
                )
        if mask is None:
            return None
        tokens = hidden_states.shape[:-1]
        same = mask.numel() == tokens.numel()
        if not same or (len(tokens) > 1 and mask.shape != tokens):  # experts see them in one row
            raise ValueError(
                f"the mask of real tokens must have one entry for each of the {list(tokens)} tokens"
                f" of this call, got {list(mask.shape)}"
            )
        return mask.reshape(-1).to(hidden_states.device)

    def _read(self) -> Tensor | None:
        if self._length is None or torch.compiler.is_compiling():
            return None
        self._of_call = from_causal(self._unread, self._length, self._past)
        return self._of_call

    def _enter(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._forget()
        call = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if call.get("output_router_logits") and not self.router_logits:
            raise ValueError(
                "output_router_logits must be False: blocks taken over do not give router logits"
            )
        inputs = call.get("inputs_embeds")
        inputs = call.get("input_ids") if inputs is None else inputs
        mask, cache = call.get("attention_mask"), call.get("past_key_values")
        positions = call.get("cache_position")
        if inputs is None:
            self._unread = mask
            return
        self._length = inputs.shape[1]
        if isinstance(mask, Tensor) and mask.dim() == 2:
            self._of_call = of_this_call(mask, inputs.shape[1], cache, positions)
        elif mask is not None and not _says_nothing(mask):
            self._unread, self._past = mask, past_length(cache, positions)

    def _leave(self, _model: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        self._forget()

    def _forget(self) -> None:
        self._length, self._of_call, self._unread, self._past = None, None, None, 0


@dataclass(frozen=True, eq=False)
class FollowedMasks:
    """The masks of a model's blocks.

    Attributes:
        of_block: each block's.
        distinct: each of them once; most models have one.
        models: that they are followed in, as many as ``distinct``.
        hooks: that keep them up to date.
    """

    of_block: list[TokenMask]
    distinct: list[TokenMask]
    models: list[nn.Module]
    hooks: list[RemovableHandle]


def follow_masks(
    model: nn.Module,
    names: Sequence[str],
    *,
    decode_tokens: int = 1,
    router_logits: bool = False,
) -> FollowedMasks:
    """Follow the masks of the models around the modules ``names`` of ``model``."""
    by_model: dict[nn.Module, TokenMask] = {}
    of_block: list[TokenMask] = []
    hooks: list[RemovableHandle] = []
    for name in names:
        around = _masked_model(model, name)
        home = model if around is None else around
        if home not in by_model:
            by_model[home] = TokenMask(decode_tokens, router_logits)
            if around is not None:
                hooks += by_model[home].follow(around)
        of_block.append(by_model[home])
    return FollowedMasks(of_block, list(by_model.values()), list(by_model), hooks)


def _masked_model(root: nn.Module, name: str) -> nn.Module | None:
    """The innermost Transformers model around the module ``name`` of ``root``.

    Whatever is called by the user, ``generate`` or PEFT, it calls this one with the mask.
    """
    path = name.split(".")
    for depth in range(len(path) - 1, -1, -1):
        module = root.get_submodule(".".join(path[:depth]))
        if any(base.__name__ == "PreTrainedModel" for base in type(module).__mro__):
            return module
    return None


def _says_nothing(mask: Any) -> bool:
    """Whether it is a dict of masks whose causal one was left out, as without padding it is."""
    return isinstance(mask, dict) and mask.get("full_attention", mask) is None


def _in_words(mask: Any) -> str:
    if torch.compiler.is_compiling():  # which makes no words of shapes
        return "one that a graph can't read"
    return str(list(mask.shape)) if isinstance(mask, Tensor) else type(mask).__name__
