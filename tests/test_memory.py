"""Memory: work in portions, out of memory in one line, and the same pictures whatever the batch."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_pipeline
from safetensors.torch import load_file
from studies import random_study

from sayso.base.devices import enough_memory, is_out_of_memory
from sayso.base.errors import UserError
from sayso.base.types import Size
from sayso.data.latents import load_latents
from sayso.data.pretraining_latents import encoded_pretraining
from sayso.families.stable_diffusion import StableDiffusion
from sayso.stages._savings import less_memory
from sayso.stages.align import AlignConfig, align
from sayso.stages.generate import GenerateConfig, generate
from sayso.study.study import Study

SIZE = 256
"""Pixels of a side: 128 × 128 latents, at which 18 images need more than the limit below."""


def pictures(study: Study) -> tuple[torch.Tensor, np.ndarray]:
    samples = sorted(study.samples(), key=lambda sample: sample.id)
    pixels = np.stack([np.asarray(study.image(s)).astype(int) for s in samples])
    return load_latents(study, samples).float(), pixels


def test_batches_and_portions_change_no_more_than_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GenerateConfig(per_prompt=3, mixed_precision="no")
    found = []
    for name, batch, pixels_at_once in (("a", 9, 1 << 20), ("b", 1, 1 << 20), ("c", 9, 2 * 32**2)):
        monkeypatch.setattr("sayso.families._contract.PIXELS_AT_ONCE", pixels_at_once)
        study = random_study(tmp_path / name)
        generate(study, dataclasses.replace(config, batch_size=batch))
        found.append(pictures(study))
    for latents, pixels in found[1:]:
        torch.testing.assert_close(latents, found[0][0], rtol=1e-3, atol=1e-3)
        assert abs(pixels - found[0][1]).max() <= 1


def test_the_autoencoder_works_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[str, int]] = []
    for what in ("decode", "encode_images"):
        real = getattr(StableDiffusion, what)

        def counted(policy: StableDiffusion, rows: torch.Tensor, of=real, name=what) -> object:
            sizes.append((name, len(rows)))
            return of(policy, rows)

        monkeypatch.setattr(StableDiffusion, what, counted)
    monkeypatch.setattr("sayso.families._contract.PIXELS_AT_ONCE", 2 * 32**2)
    study = random_study(tmp_path)
    generate(study, GenerateConfig(per_prompt=3, batch_size=9))
    assert sizes == [("decode", 2)] * 4 + [("decode", 1)]
    sizes.clear()
    policy = StableDiffusion.load(Path(study.info.base_model), torch.device("cpu"))
    encoded_pretraining(study, policy, 5)
    assert sizes == [("encode_images", 2)] * 2 + [("encode_images", 1)]


def test_a_portion_is_one_picture_at_least(tmp_path: Path) -> None:
    policy = StableDiffusion.load(tiny_pipeline(tmp_path / "p"), torch.device("cpu"))
    assert [policy.portion(Size(size, size)) for size in (64, 512, 768, 2048)] == [64, 1, 1, 1]


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate "
                      "memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(2, "No such file or directory"), False),
    ],
)  # fmt: skip
def test_out_of_memory_is_known(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory


@pytest.mark.parametrize(
    ("value", "says"),
    [(64, "--batch-size 32"), (9, "--batch-size 3"), (1, "use smaller images")],
)
def test_half_is_advised(value: int, says: str) -> None:
    with pytest.raises(UserError, match=f"out of memory at --batch-size {value}; .*{says}"), \
            enough_memory("--batch-size", value):  # fmt: skip
        raise MemoryError
    with pytest.raises(ValueError, match="other"), enough_memory("--batch-size", value):
        raise ValueError("other")


UNDER_A_LIMIT = """
import resource, sys
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel, AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer
from sayso.cli import commands as cli
from sayso.families.stable_diffusion import StableDiffusion
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
cli.main(sys.argv[2:])
"""


def under_a_limit(mebibytes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", UNDER_A_LIMIT, str(mebibytes), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
def test_generate_goes_on_with_a_smaller_batch(tmp_path: Path) -> None:
    study = random_study(tmp_path)
    command = (
        "generate", study.path, "--per-prompt", 4, "--image-size", SIZE, "--guidance-scale", 1,
        "--num-inference-steps", 1, "--mixed-precision", "no",
    )  # fmt: skip
    done = under_a_limit(400, *command, "--batch-size", 12)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(
        "sayso: error: out of memory at --batch-size 12; run the command again with"
    )
    assert "--batch-size 6 to resume" in line
    assert "Traceback" not in done.stderr
    done = under_a_limit(400, *command, "--batch-size", 1)
    assert done.returncode == 0, done.stderr
    assert len(study.samples()) == 12


def test_align_names_the_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from studies import rated_study

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StableDiffusion, "denoising_error", full)
    monkeypatch.setattr(StableDiffusion, "predict", full)
    config = AlignConfig(
        max_steps=1, batch_size=6, pretraining_images=4, aligner="sft", mixed_precision="no"
    )
    says = r"out of memory at --micro-batch-size 6; .* --micro-batch-size 3 to resume"
    study = rated_study(tmp_path)
    with pytest.raises(UserError, match=says):
        align(study, config)
    for options, says in (
        ({"name": "one"}, "run the command again with --gradient-checkpointing to resume, or give "
                          "--lora-rank 16 or --opt"),
        ({"name": "two", "lora_rank": 2, "gradient_checkpointing": True},
         "give --base-precision nf4 and another --name; sayso align"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"out of memory at --micro-batch-size 1; {says}"):
            align(study, dataclasses.replace(config, micro_batch_size=1, **options))


def test_several_copies_may_be_cut_into_shards() -> None:
    config = AlignConfig()
    again = "run the command again with --gradient-checkpointing or --sharding full to resume, or"
    assert less_memory(config, copies=True).startswith(again)
    assert "--sharding" not in less_memory(config)
    # which shards cannot be
    eight = dataclasses.replace(config, optimizer="adamw8bit")
    few = dataclasses.replace(config, lora_rank=2, base_precision="nf4")
    for kept in (eight, few):
        assert "--sharding" not in less_memory(kept, copies=True)
    whole = dataclasses.replace(few, gradient_checkpointing=True)
    assert not less_memory(whole, copies=True), "nothing is left"


def test_a_run_that_ran_out_of_memory_goes_on_with_checkpointing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As advised; the result is that of a run which was never stopped, up to rounding."""
    from studies import rated_study

    study, real, steps = rated_study(tmp_path), StableDiffusion.predict, list[bool]()

    def narrow(policy: Any, *given: Any) -> torch.Tensor:
        steps.append(policy.network.is_gradient_checkpointing)
        if len(steps) > 2 and not steps[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(policy, *given)

    config = AlignConfig(
        max_steps=4, batch_size=1, pretraining_weight=0.0, aligner="sft", mixed_precision="no",
        checkpoint_every=1, warmup_steps=0,
    )  # fmt: skip
    whole = align(study, dataclasses.replace(config, name="whole"))
    monkeypatch.setattr(StableDiffusion, "predict", narrow)
    with pytest.raises(UserError, match="again with --gradient-checkpointing to resume"):
        align(study, config)
    assert len(study.find_run("runs/align-sft").history()) < 4
    run = align(study, dataclasses.replace(config, gradient_checkpointing=True))
    assert run.config["gradient_checkpointing"]
    assert steps == [False] * 3 + [True] * 2, "the steps before were not made again"
    assert [row["step"] for row in run.history()] == [1, 2, 3, 4]
    ends = [load_file(r.weights / "unet/diffusion_pytorch_model.safetensors") for r in (run, whole)]
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)


def test_elsewhere_it_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sayso.cli import commands as cli

    def full(_arguments: list[str]) -> None:
        raise MemoryError

    monkeypatch.setattr(cli, "run", full)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("sayso: error: out of memory; close other programs")


def test_few_bits_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AlignConfig()
    object.__setattr__(config, "optimizer", "adam")  # as a --config file may say
    with pytest.raises(UserError, match="optimizer 'adam'; choose adamw or adamw8bit"):
        config.check()
    monkeypatch.setattr("sayso.base.extras.find_spec", lambda name: None)
    says = r'align --optimizer adamw8bit needs bitsandbytes; .* pip install "sayso\[quantised\]"'
    with pytest.raises(UserError, match=says):
        AlignConfig(optimizer="adamw8bit").check()
