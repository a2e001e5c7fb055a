"""What is kept in how many bits, and for how long, while a network is trained."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import rated_study
from torch import Tensor, nn

from sayso.base.errors import UserError
from sayso.data.conditions import open_conditions
from sayso.families._loading import load_policy
from sayso.stages.align import AlignConfig, align
from sayso.study.study import Study
from sayso.training import loop as loops

CPU = torch.device("cpu")
QUICK = AlignConfig(
    max_steps=3, batch_size=4, aligner="sft", learning_rate=1e-2, pretraining_images=4,
    mixed_precision="no", warmup_steps=0,
)  # fmt: skip
LORA = dataclasses.replace(QUICK, lora_rank=2)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return rated_study(tmp_path_factory.mktemp("precision"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The loops of the runs that follow."""
    made: list[Any] = []
    real = loops._Loop.__init__

    def noted(loop: Any, *arguments: Any) -> None:
        made.append(loop)
        real(loop, *arguments)

    monkeypatch.setattr(loops._Loop, "__init__", noted)
    return made


def dtypes(module: nn.Module, *, trainable: bool) -> set[torch.dtype]:
    return {p.dtype for p in module.parameters() if p.requires_grad is trainable}


@pytest.mark.parametrize("mixed", ["no", "bf16"])
def test_adapters_of_a_base_in_bf16_are_fp32(study: Study, trained: list[Any], mixed: Any) -> None:
    """Losses are about those on the whole weights; the base does not change."""
    runs = [
        align(study, dataclasses.replace(
            LORA, name=f"{kind}-{mixed}", base_precision=kind, mixed_precision=mixed))
        for kind in ("fp32", "bf16")
    ]  # fmt: skip
    whole, half = ([row["loss"] for row in run.history()] for run in runs)
    assert half == pytest.approx(whole, rel=0.02)
    network = trained[1].policy.network
    assert dtypes(network, trainable=True) == {torch.float32}
    assert dtypes(network, trainable=False) == {torch.bfloat16}
    base = load_policy(study, "base", CPU, "bf16").network.state_dict()
    for name, kept in network.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(kept, base[name.replace(".base_layer", "")]), name


def test_a_base_in_few_bits_is_for_adapters_only(study: Study) -> None:
    says = "base_precision bf16 keeps the network frozen, .* give --lora-rank too, such as 16, or"
    with pytest.raises(UserError, match=says):
        align(study, dataclasses.replace(QUICK, name="full", base_precision="bf16"))
    assert not study.begun("align", "full")


def test_whole_networks_are_trained_in_fp32_and_computed_in_bf16(
    study: Study, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set[torch.dtype]()
    real = nn.functional.conv2d

    def noted(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        out = real(x, *arguments, **options)
        seen.add(out.dtype)
        return out

    monkeypatch.setattr(nn.functional, "conv2d", noted)
    align(study, dataclasses.replace(QUICK, name="masters", mixed_precision="bf16"))
    [loop] = trained
    assert seen == {torch.bfloat16}
    assert dtypes(loop.policy.network, trainable=True) == {torch.float32}
    moments = {m.dtype for state in loop.optimizer.state.values() for m in state.values()}
    assert moments | {average.dtype for average in loop.average} == {torch.float32}


def test_encoders_are_gone_before_the_network_comes(
    study: Study, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a table of conditions neither is kept; the text encoder where it works in every step."""
    loaded: list[Any] = []
    real = load_policy

    def noted(*arguments: Any) -> Any:
        if loaded:
            assert loaded[0].vae is None
        loaded.append(real(*arguments))
        return loaded[-1]

    monkeypatch.setattr("sayso.stages._ready.load_policy", noted)
    for kept in ("table", "encode"):
        loaded.clear()
        config = dataclasses.replace(QUICK, name=kept, conditions=kept, pretraining_weight=0.5)
        align(study, config)
        encoder, policy = loaded
        assert encoder.network is None
        assert (encoder.text is None) == (kept == "table")
        assert policy is trained[-1].policy
        assert (policy.text, policy.vae) == (None, None)
    whole, steps = (study.begun("align", kept) for kept in ("table", "encode"))
    assert whole is not None
    assert steps is not None
    losses = [[row["loss"] for row in run.history()] for run in (whole, steps)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_tables_of_rounded_encoders_have_names_of_their_own(study: Study, tmp_path: Path) -> None:
    texts, rows = ["", "a dog"], torch.tensor([1])
    with torch.autocast("cpu", torch.bfloat16):
        tables = [
            open_conditions(load_policy(study, "base", CPU, kept), texts, tmp_path, "m", "table")
            for kept in ("fp32", "bf16")
        ]
    states = [table[rows]["states"].float() for table in tables]
    assert len(list(tmp_path.iterdir())) == 2
    assert not torch.equal(*states)
    torch.testing.assert_close(*states, rtol=0.05, atol=0.05)
