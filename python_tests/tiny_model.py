"""A random OLMoE of a few thousand parameters with a byte tokenizer, saved as Transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

import capmoe_kernels as cm

EXPERTS = 8
TOP_K = 2
LAYERS = 2


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, and ``<|endoftext|>``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def tiny_model(dtype: torch.dtype = torch.float32, **config: Any) -> OlmoeForCausalLM:
    """Random weights; the router's are large, so that its choice is skewed and has no ties."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 257,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": None,
        "eos_token_id": 256,
    }
    model = OlmoeForCausalLM(OlmoeConfig(**(sizes | config))).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            bias_to_first = torch.linspace(1.5, 0.5, EXPERTS)[:, None]
            layer.mlp.gate.weight.mul_(bias_to_first)
    return model.to(dtype)


def save_tiny(folder: Path, *, tokenizer: bool = True, **config: Any) -> Path:
    """A checkpoint folder as ``capmoe evaluate`` takes it."""
    tiny_model(**config).save_pretrained(folder)
    if tokenizer:
        byte_tokenizer().save_pretrained(folder)
    return folder


def token_ids(sequences: int = 3, length: int = 50) -> torch.Tensor:
    """[sequences, length] random bytes, the same in every call."""
    return torch.randint(0, 256, (sequences, length), generator=torch.Generator().manual_seed(1))


def logits_of(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids, use_cache=False).logits
    return logits


def tokens_limit(num_tokens: int, factor: float) -> int:
    """C of a call of the tiny model."""
    return cm.expert_capacity(num_tokens, EXPERTS, TOP_K, factor)
