"""What ``capmoe evaluate`` loads: models whose router is known, of any known architecture."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from architectures import CASES, EXPERTS, HIDDEN, build
from capmoe_kernels.evaluate import checkpoint
from capmoe_kernels.evaluate.errors import UsageError
from tiny_model import byte_tokenizer


@pytest.mark.parametrize("model_type", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_known_architectures_load(tmp_path, model_type):
    case = next(case for case in CASES if case.model_type == model_type)
    build(case).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = checkpoint.load(tmp_path, "cpu")
    assert (loaded.num_experts, loaded.hidden_size) == (EXPERTS, HIDDEN)
    assert loaded.top_k == case.gating.top_k


def test_a_router_that_is_not_known_is_refused_before_its_weights_are_read(tmp_path):
    AutoConfig.for_model("phimoe").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"'phimoe'.*it knows those of .*qwen3_moe"):
        checkpoint.load(tmp_path, "cpu")


def test_a_setting_that_is_not_known_is_refused(tmp_path):
    case = next(case for case in CASES if case.model_type == "deepseek_v2")
    build(case, topk_method="mine").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"topk_method must be .*got 'mine'"):
        checkpoint.load(tmp_path, "cpu")
