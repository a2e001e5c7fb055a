"""How often the network is asked in a training, counted by hand for every aligner that ships."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import set_seed
from loops import half, killed_at, run_at, train_at

from sayso.aligners import Aligner
from sayso.aligners.dpo import DirectPreference
from sayso.aligners.grpo import GroupPolicy
from sayso.aligners.kto import KahnemanTversky
from sayso.aligners.lair import Listwise
from sayso.aligners.nft import NegativeAware
from sayso.aligners.rwr import RewardWeighted
from sayso.aligners.sft import GoodImages
from sayso.base.devices import make_accelerator
from sayso.base.files import read_json, write_json
from sayso.base.types import Sampler, Size
from sayso.families import Policy
from sayso.families.sd3 import StableDiffusion3
from sayso.families.stable_diffusion import StableDiffusion
from sayso.testing import ToyPolicy, toy_work
from sayso.training.evaluations import Evaluations
from sayso.training.loop import train
from sayso.training.options import TrainOptions

STEPS, ROWS = 2, 8


def spent(tmp_path: Path, aligner: Aligner, changes: dict[str, Any], **work: Any) -> int:
    set_seed(0)
    given = {"max_steps": STEPS, "batch_size": ROWS, "learning_rate": 1e-3} | changes
    options = TrainOptions(**given)
    facts = train(
        toy_work(**work), aligner, options, run_at(tmp_path / "r"), make_accelerator("no")
    )
    return int(facts["evaluations"])


@pytest.mark.parametrize(
    ("aligner", "changes", "by_hand"),
    [
        (GoodImages(), {}, 3 * ROWS),
        (RewardWeighted(), {"pretraining_weight": 0.0}, 3 * ROWS),
        # pre-training rows are rows of the batch
        (RewardWeighted(), {"pretraining_weight": 0.1, "pretraining_fraction": 0.25}, 3 * ROWS),
        # the reference predicts the aligner's rows, not the two of pre-training
        (
            RewardWeighted(),
            {"pretraining_weight": 0.1, "pretraining_fraction": 0.25, "kl_weight": 0.1},
            3 * ROWS + 6,
        ),
        (NegativeAware(), {}, 4 * ROWS),
        (DirectPreference(), {}, 4 * ROWS),
        (DirectPreference(), {"norm_guard": 0.1}, 4 * ROWS),
        (Listwise(list_size=2), {}, 4 * ROWS),
        # both models once more for the point of reference
        (KahnemanTversky(), {}, 6 * ROWS),
        (KahnemanTversky(), {"micro_batch_size": 4}, 6 * ROWS),
    ],
)
def test_a_step_costs_what_it_should(
    tmp_path: Path, aligner: Aligner, changes: dict[str, Any], by_hand: int
) -> None:
    assert spent(tmp_path, aligner, changes) == STEPS * by_hand


@pytest.mark.parametrize(("guidance", "times"), [(1.0, 1), (3.0, 2)])
def test_images_drawn_between_updates_count(tmp_path: Path, guidance: float, times: int) -> None:
    """Eight images in ten steps, and one update on a step of each; guidance asks twice."""
    aligner = GroupPolicy(images=8, group_size=4, steps_per_image=1)
    sampler = Sampler(num_inference_steps=10, guidance_scale=guidance)
    found = spent(tmp_path, aligner, {}, sampler=sampler)
    assert found == STEPS * times * (8 * 10 + 3 * ROWS)


def test_a_resumed_run_knows_what_it_spent_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_at(monkeypatch, 3):
        train_at(tmp_path / "cut")
    _, cut = train_at(tmp_path / "cut")
    _, whole = train_at(tmp_path / "whole")
    assert cut.result["evaluations"] == whole.result["evaluations"] == 5 * 8 * 3


def test_of_an_earlier_checkpoint_nothing_is_claimed(tmp_path: Path) -> None:
    latest = half(tmp_path / "r").run.latest_checkpoint
    assert latest is not None
    state = read_json(latest / "state.json")
    del state["evaluations"]
    write_json(latest / "state.json", state)
    _, run = train_at(tmp_path / "r")
    assert "evaluations" not in run.result


def test_the_policy_is_left_as_it_was() -> None:
    policy, accelerator = ToyPolicy(8), make_accelerator("no")
    before = policy.predict
    with pytest.raises(ZeroDivisionError), Evaluations(policy, accelerator):
        raise ZeroDivisionError
    assert policy.predict == before
    cond = policy.encode_prompts(["0"])
    with Evaluations(policy, accelerator) as counted, torch.no_grad():
        policy.guided(torch.zeros(1, 2, 1, 1), torch.tensor([0.5]), cond, cond, 2.0)
    assert counted.counted() == {"evaluations": 2}


@pytest.mark.parametrize("kind", [StableDiffusion, StableDiffusion3])
def test_images_drawn_count_for_every_kind_of_network(kind: type[Policy], tmp_path: Path) -> None:
    kind.tiny(tmp_path)
    policy = kind.load(tmp_path, torch.device("cpu"))
    sampler = Sampler(num_inference_steps=4, guidance_scale=3.0, image_size=Size(32, 32))
    cond, uncond = policy.encode_prompts(["a dog", "a cat"]), policy.encode_prompts([""])
    with Evaluations(policy, make_accelerator("no")) as spent:
        policy.sample(cond, uncond, [0, 1], sampler)
        assert spent.counted() == {"evaluations": 2 * 4 * 2}
        with spent.paused():
            policy.sample(cond, uncond, [0, 1], sampler)
        assert spent.counted() == {"evaluations": 2 * 4 * 2}
        with torch.no_grad():
            t = torch.full((2,), 0.5)
            policy.predict(policy.sample(cond, uncond, [0, 1], sampler), t, cond)
    assert spent.counted() == {"evaluations": 2 * 2 * 4 * 2 + 2}
