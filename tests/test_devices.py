"""The number format follows what the processor may use, not only what it has."""

import os
import subprocess
import sys

import pytest

SCRIPT = "from sayso.base.devices import best_precision; print(best_precision())"


@pytest.mark.parametrize("limit", [{"ONEDNN_MAX_CPU_ISA": "AVX2"}, {"ATEN_CPU_CAPABILITY": "avx2"}])
def test_no_bf16_where_it_is_switched_off(limit: dict[str, str]) -> None:
    environment = {**os.environ, **limit, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "no"
