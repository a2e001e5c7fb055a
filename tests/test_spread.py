"""One process with eight rows, two with four each, parts of one: they learn the same.

Whole networks (DDP) and shards (FSDP2), whole training and adapters, with pre-training rows.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_pipeline, tiny_unet
from safetensors.torch import load_file
from spread_cases import CASES, train_case
from studies import random_study

from sayso.base.errors import UserError
from sayso.families._loading import load_policy
from sayso.study.run import Run
from sayso.testing import ToyPolicy
from sayso.training import spread
from sayso.training.options import TrainOptions
from sayso.training.spread import blocks_of, is_sharded, whole_bytes

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
SCRIPT = Path(__file__).with_name("spread_cases.py")
PARTS = {"rwr": 1, "dpo": 2, "old": 1, "lora": 1}
"""Rows of the smallest micro-batch."""
LAUNCHED = (
    "rwr-none-2", "rwr-full-2", "dpo-full-4", "old-full-4", "lora-none-2", "lora-full-2",
    "lora-full-4-bf16",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and each case trained by one process and by two."""
    folder = tmp_path_factory.mktemp("spread")
    tiny_pipeline(folder / "model")
    torch.manual_seed(0)
    small = tiny_unet(sample_size=8, block_out_channels=(8, 16), norm_num_groups=4)
    small.save_pretrained(folder / "model/unet")
    done = subprocess.run(
        [sys.executable, *TWO, str(SCRIPT), str(folder), *LAUNCHED],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def trained(folder: Path, run: str) -> torch.Tensor:
    """All weights that a run wrote, one after the other."""
    weights = load_file(next((folder / run / "weights").rglob("*.safetensors")))
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, torch.Tensor]:
    """What one process with all rows at once learns of each case."""
    for name in CASES:
        train_case(folder / "model", folder / name, name)
    return {name: trained(folder, name) for name in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("run", [run for run in LAUNCHED if "bf16" not in run])
def test_two_processes_learn_what_one_learns(
    folder: Path, one: dict[str, torch.Tensor], run: str
) -> None:
    apart = trained(folder, run) - one[run.partition("-")[0]]
    assert apart.abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_parts_of_a_row_add_up_to_the_batch(
    folder: Path, one: dict[str, torch.Tensor], name: str
) -> None:
    train_case(folder / "model", folder / f"{name}-parts", name, micro_batch_size=PARTS[name])
    assert (trained(folder, f"{name}-parts") - one[name]).abs().max() < 1e-5


@pytest.mark.slow
def test_five_steps_move_the_weights_far_beyond_what_may_differ(
    folder: Path, one: dict[str, torch.Tensor]
) -> None:
    start = load_file(folder / "model/unet/diffusion_pytorch_model.safetensors")
    before = torch.cat([start[name].flatten() for name in sorted(start)])
    for name in ("rwr", "dpo", "old"):
        assert (one[name] - before).abs().max() > 5e-5, name
        assert (one[name] - before).abs().mean() > 1e-5, name
    assert one["lora"].abs().mean() > 1e-4
    # an older self and a reference have a say
    assert (one["old"] - one["rwr"]).abs().max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("run", [run for run in LAUNCHED if "full" in run])
def test_everything_is_in_shards(folder: Path, run: str) -> None:
    """Weights (frozen ones too), average, moments, older self and reference: half in each."""
    halves = [json.loads((folder / run / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    first, second = halves
    kinds = {kind for kind, (_, whole) in first.items() if whole}
    expected = {"dpo": {"reference"}, "old": {"older"}}.get(run.partition("-")[0], set())
    assert kinds == {"weights", "average", "moments"} | expected
    for kind in kinds:
        (here, whole), (there, same) = first[kind], second[kind]
        assert whole == same == here + there, kind
        assert 0.4 < here / whole < 0.65, kind


@pytest.mark.slow
def test_shards_in_bf16_learn_about_the_same_and_start_at_the_reference(
    folder: Path, one: dict[str, torch.Tensor]
) -> None:
    rows, alone = (Run(folder / run).history() for run in ("lora-full-4-bf16", "lora"))
    assert len(one["lora"]) == len(trained(folder, "lora-full-4-bf16"))
    assert [row["loss"] for row in rows] == pytest.approx([r["loss"] for r in alone], rel=0.02)
    assert rows[0]["kl"] == 0 < rows[-1]["kl"]


def test_a_network_is_sharded_where_it_does_not_fit() -> None:
    """A network of n numbers takes 4 n bytes for each of weights, gradients, both moments, EMA."""
    policy = ToyPolicy(8)
    n = sum(p.numel() for p in policy.network.parameters())
    plain = TrainOptions(ema_decay=0.9)
    assert whole_bytes(policy, plain, reference=False) == 20 * n
    assert whole_bytes(policy, plain, reference=True) == 24 * n
    without = dataclasses.replace(plain, ema_decay=0.0)
    elsewhere = dataclasses.replace(plain, ema_on_cpu=True)
    assert {whole_bytes(policy, o, reference=False) for o in (without, elsewhere)} == {16 * n}

    def chosen(sharding: Any, processes: int, memory: int) -> bool:
        options = dataclasses.replace(plain, sharding=sharding)
        return is_sharded(options, policy, processes, memory, reference=False)

    small, large = int(20 * n / 0.71), int(20 * n / 0.69)
    assert chosen("auto", 2, small)
    assert not chosen("auto", 2, large)
    assert chosen("full", 2, large)
    assert not chosen("none", 2, small)
    assert not chosen("auto", 1, small)
    assert not chosen("full", 1, small)


def test_a_network_may_be_loaded_elsewhere_than_the_rest(tmp_path: Path) -> None:
    """In main memory, say, until it is in shards."""
    study, cpu = random_study(tmp_path), torch.device("cpu")
    policy: Any = load_policy(study, "base", cpu, network_on=torch.device("meta"))
    assert {p.device.type for p in policy.network.parameters()} == {"meta"}
    assert policy.device == cpu
    assert policy.encode_prompts(["a dog"])["states"].device == cpu
    assert policy.decode(torch.zeros(1, 4, 16, 16)).device == cpu


def test_blocks_are_those_of_diffusers_or_members_of_lists() -> None:
    names = {type(block).__name__ for block in blocks_of(tiny_unet())}
    assert {"BasicTransformerBlock", "ResnetBlock2D"} <= names
    toy: Any = ToyPolicy(8).network
    assert blocks_of(toy) == [m for m in reversed(list(toy)) if isinstance(m, torch.nn.Linear)]


def test_uneven_shares_are_refused_with_shards() -> None:
    options = TrainOptions(batch_size=8, pretraining_weight=0.1, pretraining_fraction=0.125)
    options.check_shares(1, 1)
    with pytest.raises(UserError, match=r"each of 2 processes .* 8 has 1; .* a multiple of 2, or"):
        options.check_shares(1, 2)
    dataclasses.replace(options, pretraining_fraction=0.25).check_shares(1, 2)
    object.__setattr__(options, "sharding", "half")
    with pytest.raises(UserError, match="sharding 'half'; choose auto, none or full"):
        options.check()


def test_weights_that_are_no_plain_numbers_are_not_cut() -> None:
    odd = torch.nn.Linear(2, 2)
    odd.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"weight is a Parameter of torch.int8.* --sharding none"):
        spread._refuse_what_cannot_be_cut(odd)


@pytest.mark.slow
def test_without_sharding_each_process_has_all(folder: Path) -> None:
    for rank in (0, 1):
        held = json.loads((folder / f"rwr-none-2/held-{rank}.json").read_text())
        assert all(here == whole for here, whole in held.values())
