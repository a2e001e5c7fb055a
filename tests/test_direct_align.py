"""direct_align: recovered images and gradients by hand, the last steps, what it needs."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from studies import rated_study
from torch import Tensor

from sayso.aligners import Batch, Work
from sayso.aligners.direct_align import DirectAlign, ascent_loss, reward_gradient
from sayso.base.errors import UserError
from sayso.base.types import Sampler
from sayso.cli import commands as cli
from sayso.families import Kind
from sayso.families._scheduled import Scheduled
from sayso.rewards.clip_score import ClipScore
from sayso.testing import ToyPolicy, ToyReward, toy_work
from sayso.training.needs import check_options
from sayso.training.options import TrainOptions

KINDS: list[Kind] = ["eps", "v", "velocity"]


class Flow(Scheduled):
    kind: Kind = "velocity"

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("stride", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_prediction_recovers_the_image(kind: Kind, stride: float) -> None:
    policy, t = ToyPolicy(kind=kind), torch.tensor([0.1, 0.5, 0.9])
    image, noise = random(2, 3, 2, 1, 1)
    noisy, exact = policy.add_noise(image, noise, t), policy.target(image, noise, t)
    found = policy.recovered(noisy, exact, noise, t, t * (1 - stride))
    torch.testing.assert_close(found, image, rtol=1e-4, atol=1e-4)
    off = policy.recovered(noisy, exact + 0.1, noise, t, t * (1 - stride))
    assert (off - image).abs().min() > 1e-4
    if stride == 1:
        torch.testing.assert_close(off, policy.to_image(noisy, exact + 0.1, t))


def test_flow_models_by_the_papers_formula() -> None:
    flow, t, s = Flow(), torch.tensor([0.8]), torch.tensor([0.6])
    image, noise, wrong = random(3, 1, 2, 2, 2)
    noisy, prediction = flow.add_noise(image, noise, t), noise - image + wrong
    by_hand = (noisy - (t - s) * prediction - s * noise) / (1 - s)
    found = flow.recovered(noisy, prediction, noise, t, s)
    torch.testing.assert_close(found, by_hand)
    torch.testing.assert_close(found, image - 0.5 * wrong, rtol=1e-4, atol=1e-5)


class Portions(ToyPolicy):
    def portion(self, size: object) -> int:
        return 3


def test_the_gradient_of_the_reward_in_portions_and_up_to_a_limit() -> None:
    work, latents = toy_work(Portions()), random(8, 2, 1, 1)
    reward, way = reward_gradient(work, latents, [""] * 8, None)
    torch.testing.assert_close(reward, work.policy.decode(latents)[:, :2].mean((1, 2, 3)))
    inside = (latents.abs() < 2).float()
    torch.testing.assert_close(way, inside / 8)
    limit = float(reward.median())
    kept, cut = reward_gradient(work, latents, [""] * 8, limit)
    assert torch.equal(kept, reward)
    torch.testing.assert_close(cut, way * (reward <= limit).view(-1, 1, 1, 1))
    assert 0 < (reward > limit).sum() < 8


def test_ascent_loss_by_hand() -> None:
    latents, way = random(4, 2, 1, 1).requires_grad_(), random(4, 2, 1, 1, seed=1)
    reward = torch.tensor([0.1, 0.2, 0.3, 0.4])
    loss = ascent_loss(latents, reward, way)
    torch.testing.assert_close(loss, -reward)
    loss.sum().backward()
    torch.testing.assert_close(latents.grad, -way)


def gradient(policy: ToyPolicy, loss: Tensor) -> Tensor:
    grads = torch.autograd.grad(loss, [*policy.trainable().values()], retain_graph=True)
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("kind", KINDS)
def test_its_gradient_is_that_of_the_reward_of_recovered_images(kind: Kind) -> None:
    policy = ToyPolicy(kind=kind)
    work, aligner = toy_work(policy), DirectAlign(stride=0.5)
    batch = next(iter(aligner.batches(work)))
    assert 0 <= batch["t"].min() < batch["t"].max() <= 0.8
    loss, told = aligner.loss(work, batch)
    t, noise = batch["t"], batch["noise"]
    noisy = policy.add_noise(batch["latents"], noise, t)
    prediction = policy.predict(noisy, t, batch.cond)
    images = policy.decode(policy.recovered(noisy, prediction, noise, t, t / 2))
    reward = ToyReward().score(images, [""] * 8).mean()
    torch.testing.assert_close(loss, -reward)
    torch.testing.assert_close(gradient(policy, loss), gradient(policy, -reward))
    assert gradient(policy, loss).abs().max() > 1e-5
    torch.testing.assert_close(told["reward"], reward)
    torch.testing.assert_close(told["error"], work.error(batch).mean())


def test_most_noise_bounds_the_times() -> None:
    work = toy_work(batch_size=64)
    little = next(iter(DirectAlign(most_noise=0.3).batches(work)))["t"]
    assert 0.25 < little.max() <= 0.3


def test_images_above_the_limit_are_left_alone_and_counted() -> None:
    policy = ToyPolicy(kind="velocity")
    work, free = toy_work(policy), DirectAlign()
    batch = next(iter(free.batches(work)))
    noisy = policy.add_noise(batch["latents"], batch["noise"], batch["t"])
    images = policy.recovered(
        noisy, work.prediction(batch), batch["noise"], batch["t"], batch["t"] * 0.8
    )
    reward = ToyReward().score(policy.decode(images), [""] * 8)
    limit = float(reward.detach().sort().values[3])
    _, told = (aligner := dataclasses.replace(free, reward_limit=limit)).loss(work, batch)
    assert told["at_limit"] == 0.5
    ours = gradient(policy, aligner.loss(work, batch)[0])
    wanted = gradient(policy, -reward.clamp(max=limit).mean())
    torch.testing.assert_close(ours, wanted)
    assert wanted.abs().max() > 1e-5
    assert not torch.allclose(ours, gradient(policy, free.loss(work, batch)[0]), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_last_steps_are_drawn_with_a_gradient(scale: float) -> None:
    """Two of ten, with guidance or without; the image is the one that is drawn without any."""
    # of one untrained for eps the images are white or black, and nothing has a gradient
    policy, sampler = ToyPolicy(kind="velocity"), Sampler(10, guidance_scale=scale)
    work = toy_work(policy, sampler=sampler)
    aligner = DirectAlign(source="rollouts", last_steps=2)
    batch = next(iter(aligner.batches(work)))
    loss, told = aligner.loss(work, batch)
    times = policy.grid(sampler)[-3:]
    x, uncond = batch["noisy"], policy.encode_prompts([""] * 8)
    for t, s in ((times[0], times[1]), (times[1], times[2])):
        prediction = policy.under(sampler, x, t.expand(8), batch.cond, uncond)
        x, _ = policy.transition(x, prediction, t.expand(8), s.expand(8), 0.0)
    reward = ToyReward().score(policy.decode(x), [""] * 8).mean()
    torch.testing.assert_close(loss, -reward)
    torch.testing.assert_close(gradient(policy, loss), gradient(policy, -reward))
    assert gradient(policy, loss).abs().max() > 1e-4
    whole = policy.rollout(
        batch.cond, policy.encode_prompts([""]), _seeds(work), dataclasses.replace(sampler, eta=0.0)
    )
    torch.testing.assert_close(whole.way[8], batch["noisy"])
    torch.testing.assert_close(whole.latents, x.detach())
    assert "error" not in told


def _seeds(work: Work) -> list[int]:
    from sayso.aligners._rollouts import planned

    return planned(work, 0, 8, 1, work.sampler).seeds


class Told(ToyReward):
    """Remembers the texts that it was asked about."""

    texts: ClassVar[list[str]] = []

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.texts.extend(prompts)
        return super().score(images, prompts)


@pytest.mark.parametrize(
    "options", [{}, {"source": "rollouts"}, {"source": "rollouts", "last_steps": 1}]
)
def test_each_image_is_scored_against_its_own_prompt(options: dict[str, Any]) -> None:
    work, aligner = toy_work(reward=Told()), DirectAlign(**options)
    for batch in aligner.batches(work):
        Told.texts.clear()
        aligner.loss(work, batch)
        assert [float(text) for text in Told.texts] == batch.cond["number"].flatten().tolist()
        assert len(set(Told.texts)) > 1


def test_drawn_images_are_those_of_the_policy_as_it_is() -> None:
    work, aligner = toy_work(max_steps=2), DirectAlign(source="rollouts")
    batches = aligner.batches(work)
    next(batches)
    with torch.no_grad():
        for parameter in work.policy.trainable().values():
            parameter.add_(0.05)
    second = next(batches)
    again = DirectAlign(source="rollouts").batches(dataclasses.replace(work, start_step=1))
    assert torch.equal(next(iter(again))["latents"], second["latents"])
    fresh = aligner.batches(toy_work(max_steps=2, start_step=1))
    assert not torch.allclose(next(iter(fresh))["latents"], second["latents"], atol=1e-3)


@pytest.mark.parametrize(
    ("mends", "says"),
    [
        (lambda scores: scores * float("nan"), r"is NaN or infinite for an image .* for '\d'"),
        (lambda scores: scores[:, None], r"gave scores of shape \[8, 1\] for 8 images"),
        (lambda scores: scores.mean(), r"gave scores of shape \[\] for 8 images"),
        (lambda scores: scores.tolist(), "gave a list for 8 images"),
        (lambda scores: scores.detach(), "says that it is differentiable, but no gradient"),
        (lambda scores: torch.ones(8, requires_grad=True), "says that it is differentiable"),
    ],
)
def test_a_reward_that_gives_no_gradient_or_no_score_stops(
    monkeypatch: pytest.MonkeyPatch, mends: Callable[[Tensor], Tensor], says: str
) -> None:
    class Broken(ToyReward):
        def score(self, images, prompts):
            return mends(super().score(images, prompts))

    work, aligner = toy_work(reward=Broken()), DirectAlign()
    monkeypatch.setattr(work.policy, "portion", lambda _: 8)
    batch: Batch = next(iter(aligner.batches(work)))
    with pytest.raises(UserError, match=f"reward Broken {says}"):
        aligner.loss(work, batch)


def test_what_is_needed_follows_the_source() -> None:
    assert DirectAlign().required() == {"reward", "gradient"}
    assert DirectAlign(source="rollouts").required() == {"reward", "gradient", "rollouts"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0.0}, "stride"),
        ({"most_noise": 1.1}, "most_noise"),
        ({"last_steps": -1}, "last_steps"),
        ({"last_steps": 1}, "last_steps 1 are steps of drawing; give --source rollouts too"),
    ],
)
def test_bad_options_name_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DirectAlign(**options)


def test_all_of_the_steps_may_be_the_last() -> None:
    work, aligner = toy_work(), DirectAlign(source="rollouts", last_steps=10)
    batch = next(iter(aligner.batches(work)))
    assert batch["t"].tolist() == [work.policy.grid(work.sampler)[0].item()] * 8
    assert aligner.loss(work, batch)[0].isfinite()


def test_more_last_steps_than_there_are_steps_are_refused() -> None:
    too_many = DirectAlign(source="rollouts", last_steps=11)
    with pytest.raises(UserError, match="last_steps 11 are more than the 10 of the study's"):
        next(iter(too_many.batches(toy_work())))


@pytest.mark.parametrize(
    ("own", "pretraining", "world", "advice"),
    [
        (58, 6, 4, "4 processes cannot share 58 images of an update evenly; give a "
         "--pretraining-fraction that leaves 56 or 60 of the 64 rows to them, or start"),
        (7, 1, 4, "fraction that leaves 4 of the 8 rows to them"),
        (3, 1, 4, "give a larger --batch-size, or start fewer processes"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("last_steps", [0, 1])
def test_images_that_cannot_be_shared_name_options_that_it_has(
    own: int, pretraining: int, world: int, advice: str, last_steps: int
) -> None:
    rows = own + pretraining
    options = TrainOptions(
        batch_size=rows, pretraining_weight=1.0, pretraining_fraction=pretraining / rows
    )
    with pytest.raises(UserError, match=advice):
        check_options(options, DirectAlign(source="rollouts", last_steps=last_steps), world)
    check_options(options, DirectAlign(), world)
    work = toy_work(batch_size=own, n_pretraining=pretraining, world=world)
    assert next(iter(DirectAlign().batches(work))), "of samples, some processes may have one more"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return rated_study(tmp_path_factory.mktemp("study"))


@pytest.mark.parametrize(
    "more", [[], ["--source", "rollouts", "--last-steps", "1"], ["--gradient-checkpointing"]]
)
def test_it_trains_through_the_command_line(study: Any, more: list[str]) -> None:
    """Through CLIP and the autoencoder; images that nobody scored before."""
    name = f"d{len(more)}"
    cli.run([
        "align", str(study.path), "--aligner", "direct_align", "--reward", "clip_score",
        "--max-steps", "3", "--batch-size", "4", "--name", name, "--mixed-precision", "no",
        "--learning-rate", "1e-3", *more,
    ])  # fmt: skip
    run = study.find_run(f"runs/align-{name}")
    assert "rewards" not in run.inputs, "stored images are not scored first"
    rows = run.history()
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["loss"] == pytest.approx(-row["reward"]) for row in rows)
    assert all(row["grad_norm"] > 0 for row in rows)


def test_a_reward_without_a_gradient_is_refused_before_anything_is_loaded(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(ClipScore, "differentiable", False)
    monkeypatch.setattr("sayso.stages._ready.load_policy", loaded)
    command = ["align", str(study.path), "--aligner", "direct_align", "--reward", "clip_score"]
    with pytest.raises(UserError, match="needs the gradient of the reward, but clip_score has"):
        cli.run([*command, "--name", "none", "--max-steps", "1"])
    assert not (Path(study.path) / "runs/align-none").exists()
