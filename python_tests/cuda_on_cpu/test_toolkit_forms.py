"""Every asynchronous instruction that the toolkit's cuda::ptx emits is known, or refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cuda_on_cpu import emulate
from cuda_on_cpu.errors import Unsupported
from cuda_on_cpu.ptx_snippets import module

if shutil.which("nvcc") is None:
    pytest.skip("nvcc is not on PATH", allow_module_level=True)

HEADERS = """
    barrier_cluster cp_async_bulk cp_async_bulk_commit_group cp_async_bulk_multicast
    cp_async_bulk_tensor cp_async_bulk_tensor_multicast cp_async_bulk_wait_group
    cp_async_mbarrier_arrive cp_async_mbarrier_arrive_noinc cp_reduce_async_bulk
    cp_reduce_async_bulk_bf16 cp_reduce_async_bulk_f16 cp_reduce_async_bulk_tensor fence
    fence_mbarrier_init fence_proxy_async fence_proxy_tensormap_generic getctarank
    mbarrier_arrive mbarrier_arrive_expect_tx mbarrier_arrive_no_complete mbarrier_expect_tx
    mbarrier_init mbarrier_test_wait mbarrier_test_wait_parity mbarrier_try_wait
    mbarrier_try_wait_parity red_async st_async tensormap_cp_fenceproxy tensormap_replace"""
# Of sm_100; reductions into shared memory; and the two that wrap around.
REFUSED = r"cta_group|cp_mask|red\.async|cp\.reduce.*(shared::cluster|\.inc|\.dec)"
REGISTERS = {"r": "t", "l": "x", "h": "h", "f": "f", "d": "d"}


def folder() -> Path:
    told = subprocess.run(
        ["nvcc", "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=False
    )
    top = re.search(r"^#\$ TOP=(.*)$", told.stderr, re.M)[1]
    return Path(top) / "include/cccl/cuda/__ptx/instructions/generated"


def statements(header: str) -> list[str]:
    """Each asm statement's text with registers in place of its operands."""
    out = []
    pattern = r'asm\s*(?:volatile)?\s*\(((?:\s*"(?:[^"\\]|\\.)*")+)((?:\s*:[^;]*)?)\);'
    for literal, constraints in re.findall(pattern, (folder() / f"{header}.h").read_text()):
        text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', literal)).replace("\\n", "\n")
        text = re.sub(r"//[^\n]*", "", text.replace("\\t", " ")).strip().rstrip(";")
        kinds = re.findall(r'"[=+]*([a-z])"\s*\(', constraints)
        for i in reversed(range(len(kinds))):
            # Sizes and dimensions must be numbers: 128 is the one that cp_fenceproxy has.
            number = "128" if "tensormap.cp_fenceproxy" in text else "0"
            name = REGISTERS.get(kinds[i])
            operand = f"{name}{i % (4 if name in 'hf' else 8)}" if name else number
            text = re.sub(rf"%{i}(?!\d)", operand, text)
        out.append(text if text.endswith("}") else text + ";")
    return out


@pytest.mark.parametrize("header", HEADERS.split())
def test_forms_are_known_or_refused(header):
    found = statements(header)
    assert found
    for text in found:
        ptx = module(".reg .f64 d<8>;" + text, target="sm_90a")
        if re.search(REFUSED, text, re.S):
            with pytest.raises(Unsupported, match="PTX line"):
                emulate(ptx)
        else:
            emulate(ptx)
