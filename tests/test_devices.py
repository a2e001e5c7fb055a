"""The number format follows what the processor may use, not only what it has."""

import os
import subprocess
import sys

import pytest
import torch

from sayso.base.devices import make_accelerator
from sayso.base.errors import UserError

SCRIPT = "from sayso.base.devices import best_precision; print(best_precision())"


@pytest.mark.parametrize("limit", [{"ONEDNN_MAX_CPU_ISA": "AVX2"}, {"ATEN_CPU_CAPABILITY": "avx2"}])
def test_no_bf16_where_it_is_switched_off(limit: dict[str, str]) -> None:
    environment = {**os.environ, **limit, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "no"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without a GPU")
def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(UserError, match=r"fp16 is for GPUs, and here is only a CPU; give bf16 or"):
        make_accelerator("fp16")
