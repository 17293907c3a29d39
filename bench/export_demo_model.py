"""Turn a checkpoint of ``train_demo_model.py`` into a Transformers model, and measure it.

    python bench/export_demo_model.py --run DIR --out capmoe_kernels/demo/model

Writes ``config.json``, ``model.safetensors`` (bf16), the byte tokenizer and ``training.json``.
Every measurement is of the written files, loaded again by Transformers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from demo_measure import (
    END_OF_TEXT,
    LOAD_BATCH,
    STRIDE,
    WINDOW,
    Routes,
    compressors,
    file_nats,
    load_facts,
)
from demo_net import EPS, ROPE_THETA, Shape, forward
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capmoe_kernels.demo import corpus


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose token number is the byte's value, and which adds nothing by itself."""
    # The usual byte alphabet of byte-level BPE: printable bytes stand for themselves, the others
    # for the characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable}
    alphabet |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    vocabulary = {alphabet[byte]: byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def check_tokenizer(folder: Path) -> None:
    """The saved tokenizer must map text to its UTF-8 bytes and back, exactly."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    every = "".join(chr(i) for i in range(0x3000) if not 0xD800 <= i < 0xE000)
    for text in ("", " a  b\n\n\tif x:\r\n", "it 's n't .", "\u00e9\u4e2d\U0001f600", every):
        ids = tokenizer(text)["input_ids"]
        assert list(ids) == list(text.encode()), "token numbers are not the bytes"
        assert tokenizer.decode(ids) == text, "decoding does not give the text back"
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == END_OF_TEXT
    assert len(tokenizer) == END_OF_TEXT + 1


def write_model(params: dict[str, Tensor], shape: Shape, folder: Path) -> None:
    """Save model and tokenizer as Transformers does."""
    config = OlmoeConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        num_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        norm_topk_prob=False,
        router_aux_loss_coef=0.0,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        max_position_embeddings=WINDOW,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        pad_token_id=END_OF_TEXT,
        tie_word_embeddings=False,
    )
    model = OlmoeForCausalLM(config)
    model.load_state_dict(params, strict=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    check_tokenizer(folder)


@torch.no_grad()
def training_forward_difference(params: dict[str, Tensor], model: Any, shape: Shape) -> list[float]:
    """Bits per byte of one text by the training code and by Transformers (they should agree)."""
    tokens = torch.tensor([END_OF_TEXT, *corpus.held_out_text()[: 16 * WINDOW]])
    ids, targets = tokens[:-1].view(16, -1), tokens[1:].view(16, -1)
    ours = forward(params, shape, ids, targets.contiguous(), 0.0)[0].mean()
    theirs = F.cross_entropy(model(ids).logits.float().flatten(0, 1), targets.flatten())
    return [round(float(value) / math.log(2), 4) for value in (ours, theirs)]


def main() -> None:
    """Write the model, measure it, write ``training.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--machine", default="unnamed", help="the training machine, in words")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"), help="date of the training")
    parser.add_argument("--quick", action="store_true", help="plain windows only")
    args = parser.parse_args()
    torch.set_num_threads(1)

    facts = json.loads((args.run / "facts.json").read_text())
    shape = Shape(**facts["shape"])
    params = load_file(args.run / "checkpoint.safetensors")
    write_model(params, shape, args.out)
    model = OlmoeForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()
    agreement = training_forward_difference(params, model, shape)
    print("training code / Transformers:", agreement, flush=True)

    files = corpus.held_out_files()
    text = corpus.held_out_text()
    routes = Routes(model)
    plain = {path.name: file_nats(model, path.read_bytes(), WINDOW) for path in files}
    skew = load_facts(routes.indices(), shape.experts)
    print(f"plain {sum(plain.values()) / math.log(2) / len(text):.4f}", skew, flush=True)
    if args.quick:
        return
    model = OlmoeForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()
    sliding = {path.name: file_nats(model, path.read_bytes(), STRIDE) for path in files}

    def bits(nats: dict[str, float]) -> dict[str, float]:
        sizes = {path.name: path.stat().st_size for path in files}
        each = {name: value / math.log(2) / sizes[name] for name, value in nats.items()}
        each["total"] = sum(nats.values()) / math.log(2) / len(text)
        return {name: round(value, 4) for name, value in each.items()}

    arguments = facts["arguments"]
    report = {
        "what": "byte-level OlmoeForCausalLM trained on the source of Python's standard library",
        "command": f"OMP_NUM_THREADS=1 python bench/train_demo_model.py "
        f"--minutes {arguments['minutes']:g} --out DIR",
        "date": args.date,
        "machine": args.machine,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **facts,
        "tokens_in_training_text": facts["training_bytes"] + len(corpus.training_files()),
        "training_files": len(corpus.training_files()),
        "held_out": {
            "files": {path.name: path.stat().st_size for path in files},
            "bytes": len(text),
            "sha256": hashlib.sha256(text).hexdigest(),
        },
        "bits_per_byte": {
            "how": "The shipped bf16 weights, computed in float32 by Transformers, one file at a "
            "time, from <|endoftext|> on; a window sees nothing before its start; every byte is "
            "scored once.",
            f"windows_of_{WINDOW}_every_{STRIDE}": bits(sliding),
            f"windows_of_{WINDOW}_no_overlap": bits(plain),
        },
        "compressors_bits_per_byte": {
            "how": "The held-out files one after the other; the last: xz of training text plus "
            "held-out text, less xz of the training text, dictionary 64 MiB.",
            **compressors(text),
        },
        "expert_load_on_held_out_text": {
            "how": f"Tokens per expert over the mean expert's, files in order, plain windows of "
            f"{WINDOW}; batches are {LOAD_BATCH} consecutive tokens.",
            **skew,
        },
        "same_text_by_training_code_and_by_transformers": agreement,
    }
    (args.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(json.dumps(report["bits_per_byte"], indent=1), f"{size:,} bytes in the folder")
    assert size <= 10_000_000, "the model folder is larger than 10 MB"


if __name__ == "__main__":
    main()
