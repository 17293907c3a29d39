"""Which tokens of a model's call are real: blocks see hidden states only, the model its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class TokenMask:
    """The real tokens of the call that a model is in.

    Attributes:
        given: [B, S] bool from the user, which goes before what the model is called with.
    """

    def __init__(self) -> None:
        self.given: Tensor | None = None
        # The calls' own mask [B, S], or the shape of one that says nothing about padding.
        self._of_call: Tensor | None = None
        self._unreadable: list[int] | str | None = None
        self._sequence_length: int | None = None

    def follow(self, model: nn.Module) -> list[RemovableHandle]:
        """Learn of every call of ``model``, which takes ``attention_mask`` by name."""
        return [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave),
        ]

    def is_decoding(self, hidden_states: Tensor) -> bool:
        """Whether every sequence of the call has one token."""
        if hidden_states.dim() == 3:
            return hidden_states.shape[1] == 1
        return self._sequence_length == 1

    def of(self, hidden_states: Tensor, bounded: bool) -> Tensor | None:
        """[T] bool for the tokens of ``hidden_states``; None: all are real.

        Raises:
            ValueError: the mask does not fit, or where ``bounded``, it can't be read.
        """
        mask = self._of_call if self.given is None else self.given
        if mask is None:
            if bounded and self._unreadable is not None:
                raise ValueError(
                    "attention_mask must be [B, S] where a capacity bounds the call, since padding"
                    f" must not compete for it, got {self._unreadable}; say which tokens are real"
                    " with real_tokens(model, token_mask)"
                )
            return None
        tokens = hidden_states.shape[:-1]
        if mask.numel() != tokens.numel():
            raise ValueError(
                f"the mask of real tokens must have one entry for each of the {list(tokens)} tokens"
                f" of this call, got {list(mask.shape)}"
            )
        return mask.reshape(-1).to(hidden_states.device)

    def _enter(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._of_call, self._unreadable = None, None
        inputs = kwargs.get("inputs_embeds")
        if inputs is None:
            inputs = kwargs.get("input_ids", args[0] if args else None)
        self._sequence_length = None if inputs is None else inputs.shape[1]
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if mask is None or inputs is None:
            return
        if isinstance(mask, Tensor) and mask.dim() == 2:
            # With a cache the mask covers the past, too; this call's tokens are its last.
            self._of_call = mask[:, -inputs.shape[1] :].bool()
        else:
            self._unreadable = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__

    def _leave(self, _model: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        self._of_call, self._unreadable, self._sequence_length = None, None, None


@dataclass(frozen=True, eq=False)
class FollowedMasks:
    """The masks of a model's blocks.

    Attributes:
        of_block: each block's.
        distinct: each of them once; most models have one.
        hooks: that keep them up to date.
    """

    of_block: list[TokenMask]
    distinct: list[TokenMask]
    hooks: list[RemovableHandle]


def follow_masks(model: nn.Module, names: Sequence[str]) -> FollowedMasks:
    """Follow the masks of the models around the modules ``names`` of ``model``."""
    by_model: dict[nn.Module | None, TokenMask] = {}
    of_block: list[TokenMask] = []
    hooks: list[RemovableHandle] = []
    for name in names:
        around = _masked_model(model, name)
        if around not in by_model:
            by_model[around] = TokenMask()
            if around is not None:
                hooks += by_model[around].follow(around)
        of_block.append(by_model[around])
    return FollowedMasks(of_block, list(by_model.values()), hooks)


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
