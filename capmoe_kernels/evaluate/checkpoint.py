"""A model and its tokenizer from a Hugging Face folder, or one line that says what is wrong."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .device import choose_device
from .errors import UsageError

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What :func:`load` found.

    Attributes:
        model: in inference mode, in the dtype it was saved in, on ``device``.
        tokenizer: its own.
        num_experts: E of every MoE block.
        top_k: experts a token asks for.
        hidden_size: H.
    """

    path: Path
    model: Any
    tokenizer: Any
    device: torch.device
    num_experts: int
    top_k: int
    hidden_size: int


def load(path: Path, device: str) -> Checkpoint:
    """Load a checkpoint folder; nothing is downloaded.

    Raises:
        UsageError: it is no folder, has no configuration, weights or tokenizer, or is not a
            Mixture-of-Experts model that the kernels know.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from ..integrations.blocks import MoeParts
    from ..integrations.transformers import check_supported, find_moe_blocks

    _be_quiet()
    if not (path / "config.json").is_file():
        raise UsageError(f"{path}: not a Hugging Face checkpoint folder, it has no config.json")
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise UsageError(f"{path}: no tokenizer in it ({', '.join(_TOKENIZER_FILES[:3])}, ...)")
    where = choose_device(device)
    config = _load(path, "configuration", AutoConfig)
    try:
        check_supported(config.model_type)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    tokenizer = _load(path, "tokenizer", AutoTokenizer)
    model = _load(path, "model", AutoModelForCausalLM, dtype="auto").to(where).eval()
    try:
        blocks = find_moe_blocks(model)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    parts = blocks[0].parts
    assert isinstance(parts, MoeParts)  # as those of a supported model type are
    experts, top_k = parts.experts, parts.gating.top_k
    return Checkpoint(
        path, model, tokenizer, where, experts.num_experts, top_k, experts.hidden_size
    )


def _be_quiet() -> None:
    """Warnings and bars of Transformers would stand between the command's own lines."""
    from transformers.utils import logging

    quiet: Any = logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()


def _load(path: Path, what: str, loader: Any, **options: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return loader.from_pretrained(path, local_files_only=True, **options)
    except Exception as error:  # what a damaged folder raises is the libraries' own, and has no end
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise UsageError(f"{path}: cannot load the {what}: {reason.strip()}") from error
