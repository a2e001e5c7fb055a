"""Reference and older selves: what they predict, and that training leaves them alone."""

import copy
from pathlib import Path

import pytest
import torch
from models import tiny_pipeline
from torch import Tensor, nn

from sayso.base.types import Size
from sayso.families import Policy
from sayso.families.stable_diffusion import StableDiffusion
from sayso.testing import ToyPolicy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("sd") / "p")


def prediction(policy: Policy) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, *policy.latent_shape(Size(32, 32)), generator=rng)
    return policy.predict(noisy, torch.tensor([0.2, 0.9]), policy.encode_prompts(["1", "2"]))


def change(policy: Policy) -> None:
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.1)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_reference_stays_what_it_was(folder: Path, lora_rank: int) -> None:
    policy = StableDiffusion.load(folder, CPU)
    start = prediction(policy).detach()
    if lora_rank:
        policy.add_lora(lora_rank, seed=0)
    policy.keep_reference()
    change(policy)
    with policy.reference():
        kept = prediction(policy)
    assert torch.equal(kept, start)
    assert not kept.requires_grad
    now = prediction(policy)
    assert not torch.equal(now, start)
    now.sum().backward()
    assert all(p.grad is not None for p in policy.trainable().values())


def test_copy_in_bf16_starts_out_equal_to_the_policy(folder: Path) -> None:
    policy = StableDiffusion.load(folder, CPU)
    policy.keep_reference(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = prediction(policy)
    with policy.reference():
        assert torch.equal(prediction(policy), ours)
        weights = policy.network.conv_in.weight.dtype, policy.network.conv_norm_out.weight.dtype
    assert weights == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, None])
def test_the_reference_is_frozen_and_computes_in_its_format(kind: torch.dtype | None) -> None:
    policy = ToyPolicy(8)
    policy.keep_reference(kind)
    with policy.reference():
        parameters = [*policy.network.parameters()]
        assert not any(p.requires_grad for p in parameters)
        assert {p.dtype for p in parameters} == {kind or torch.float32}
        assert torch.is_autocast_enabled("cpu") == (kind is not None)
        assert kind in (None, torch.get_autocast_dtype("cpu"))
    assert all(p.requires_grad for p in policy.network.parameters())


def test_reference_must_be_kept_first() -> None:
    with pytest.raises(RuntimeError, match="keep_reference"), ToyPolicy().reference():
        pass


def test_older_self_follows_at_a_distance() -> None:
    policy = ToyPolicy()
    start = copy.deepcopy(policy)
    policy.remember("old")
    change(policy)
    with policy.old("old"):
        assert torch.equal(prediction(policy), prediction(start))
    policy.remember("old", decay=0.75)
    middle = copy.deepcopy(start)
    with torch.no_grad():
        for parameter in middle.trainable().values():
            parameter.add_(0.025)
    before = {name: p.detach().clone() for name, p in policy.trainable().items()}
    with policy.old("old"):
        torch.testing.assert_close(prediction(policy), prediction(middle).detach())
    assert all(torch.equal(p, before[name]) for name, p in policy.trainable().items())
    policy.remember("old")
    now = prediction(policy).detach()
    with policy.old("old"):
        torch.testing.assert_close(prediction(policy), now)


def test_a_failing_block_leaves_the_policy_as_it_was() -> None:
    policy = ToyPolicy()
    policy.keep_reference()
    policy.remember("old")
    change(policy)
    network, now = policy.network, prediction(policy)
    for block in (policy.reference(), policy.old("old")):
        with pytest.raises(ZeroDivisionError), block:
            _ = 1 / 0
    assert policy.network is network
    assert torch.equal(prediction(policy), now)


def test_released_parts_give_their_memory_back(folder: Path) -> None:
    import gc
    import weakref

    policy = StableDiffusion.load(folder, CPU)
    text = weakref.ref(policy.text)
    policy.release("text")
    gc.collect()
    assert text() is None
    assert policy.latent_shape(Size(32, 32)) == (4, 16, 16)
    only = StableDiffusion.load(folder, CPU, parts=("network",), dtype=torch.bfloat16)
    assert (only.text, only.vae) == (None, None)
    assert StableDiffusion.load(folder, CPU, parts=("text", "vae")).network is None
    assert next(only.network.parameters()).dtype == torch.bfloat16


def test_a_reference_in_fp32_computes_in_fp32_whatever_is_around_it() -> None:
    policy = ToyPolicy()
    policy.keep_reference()
    expected = prediction(policy).detach()
    with torch.autocast("cpu", torch.bfloat16), policy.reference():
        assert torch.equal(prediction(policy), expected)


def test_the_wrapper_that_adds_up_over_processes_is_looked_through() -> None:
    policy, plain = ToyPolicy(), ToyPolicy()
    wrapped = object.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = policy.network
    policy.network = wrapped
    assert [*policy.trainable()] == [*plain.trainable()]
    assert policy.has_adapters is False
    policy.keep_reference()
    policy.remember("old")
    assert policy.remembered["old"].keys() == plain.trainable().keys()
    for block in (policy.reference(), policy.old("old")):
        with block:
            assert torch.equal(prediction(policy), prediction(plain).detach())
        assert policy.network is wrapped
