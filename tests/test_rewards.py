"""Rewards: formulas by hand, gradients, saving and loading, names."""

import copy
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from clips import colour_study, rate_all, tiny_clip
from safetensors.torch import load_file, save_file
from torch import Tensor

from sayso.base.errors import UserError
from sayso.data.clip import ClipEncoder, to_pixels
from sayso.rewards import (
    RatedSamples,
    Reward,
    is_differentiable,
    load_reward,
    load_trainable_reward,
    reward_folders,
)
from sayso.rewards._contract import BATCH_SIZE
from sayso.rewards.clip_head import (
    COSINES,
    ClipHead,
    _Fit,
    _Head,
    prompt_classification_loss,
    squared_error,
)
from sayso.rewards.clip_score import ClipScore
from sayso.stages.fit import FitConfig, collect, fit
from sayso.study.study import Study

QUICK = {"hidden_width": 32, "max_epochs": 3}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Study:
    """A study with a finished fit; shared, not to be changed."""
    study = colour_study(tmp_path_factory.mktemp("study") / "study", clip, train=12)
    rate_all(study)
    fit(study, FitConfig(), ClipHead(**QUICK))
    return study


def own_reward(folder: Path) -> Path:
    """A file of a user's own, with a reward that says nothing of itself."""
    own = folder / "own.py"
    own.write_text(
        "from dataclasses import dataclass\nfrom sayso.rewards import Reward\n\n\n"
        "@dataclass\nclass One(Reward):\n    def score(self, images, prompts): ...\n"
    )
    return own


# formulas


def test_squared_error_by_hand() -> None:
    found = squared_error(torch.tensor([0.25, 1.0, 0.5]), torch.tensor([1.0, 1.0, 0.75]))
    assert found.tolist() == [0.5625, 0.0, 0.0625]


def test_prompt_classification_by_hand() -> None:
    # T = 2: −ln(e^½ / (e^½ + 1 + e^¼)) and −ln(1/3)
    scores = torch.tensor([[1.0, 0.0, 0.5], [0.3, 0.3, 0.3]])
    found = prompt_classification_loss(scores, temperature=2.0)
    root = math.exp(0.5)
    assert found[0].item() == pytest.approx(-math.log(root / (root + 1 + math.exp(0.25))))
    assert found[1].item() == pytest.approx(math.log(3))


def test_prompt_classification_without_altered_prompts_is_zero() -> None:
    scores = torch.tensor([[0.8, -math.inf, -math.inf], [0.8, 0.2, -math.inf]], requires_grad=True)
    found = prompt_classification_loss(scores, temperature=2.0)
    assert found[0].item() == 0
    assert found[1].item() == pytest.approx(math.log(1 + math.exp(-0.3)), rel=1e-6)
    found.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_true_and_altered_prompts_both_carry_gradient() -> None:
    scores = torch.tensor([[0.6, 0.4, 0.5]], requires_grad=True)
    prompt_classification_loss(scores, temperature=2.0).sum().backward()
    assert scores.grad is not None
    true, *altered = scores.grad[0].tolist()
    assert true < 0
    assert all(g > 0 for g in altered)
    assert sum(scores.grad[0].tolist()) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("interaction", [False, True])
def test_head_sees_directions_not_lengths(interaction: bool) -> None:
    torch.manual_seed(0)
    head = _Head(8, 16, interaction=interaction)
    images, texts = torch.randn(5, 8), torch.randn(5, 8)
    scores = head(images, texts)
    assert ((scores > 0) & (scores < 1)).all()
    torch.testing.assert_close(head(images * 7, texts / 3), scores)
    assert head.layers[0].in_features == (4 * 8 + COSINES if interaction else 16)
    assert not torch.allclose(head(texts, images), scores)


# one step of learning


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_a_step_of_learning_follows_both_terms(
    study: Study, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    """L = L_MSE + λ L_pc; L_pc is over good images alone, and every score carries gradient."""
    reward = ClipHead(**QUICK, prompt_classification_weight=weight, mixed_precision="no")
    reward.prepare(study, "cpu")
    data = collect(study, FitConfig())
    rated = RatedSamples(data.samples, data.prompts, data.labels, [False] * len(data.samples))
    learning = _Fit(reward, study, rated, study.run("fit", f"step-{weight}", {}))
    others = ["a red colored sea", "a blue colored sea", "a white colored sea", "a pink sea"]
    monkeypatch.setattr(learning, "_altered", lambda prompt: others)
    head = reward.head.requires_grad_(True)
    learning.optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    before = copy.deepcopy(head)
    rows = torch.tensor([data.labels.index(1.0), data.labels.index(0.0), 1, 2, 3])
    logged = learning._update(rows)
    moved = [a.detach() - b for a, b in zip(before.parameters(), head.parameters(), strict=True)]

    images, target = learning.images[rows], torch.tensor(data.labels)[rows]
    texts = reward.clip.texts([data.prompts[row].text for row in rows])
    mse = ((target - before(images, texts)) ** 2).mean()
    good = images[target > 0.5]
    assert 0 < len(good) < len(rows)
    choices = [texts[target > 0.5], *(reward.clip.texts([t] * len(good)) for t in others)]
    odds = torch.stack([before(good, text) for text in choices], dim=1).div(2).softmax(dim=1)
    loss = mse - weight * odds[:, 0].log().mean()
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    torch.testing.assert_close(moved, list(gradients), rtol=1e-4, atol=1e-7)
    assert logged["squared_error"] == pytest.approx(mse.item())
    if weight:
        assert logged["prompt_classification_loss"] == pytest.approx(
            -odds[:, 0].log().mean().item()
        )


# the rewards


def rewards(study: Study) -> list[Reward]:
    return [load_reward(study, name) for name in ("clip_score", "runs/fit-clip_head")]


def test_clip_score_is_the_cosine(study: Study) -> None:
    reward = load_reward(study, "clip_score")
    assert isinstance(reward, ClipScore)
    samples = study.samples()[:3]
    images = torch.stack([to_pixels(study.image(s)) for s in samples])
    text, pixels = reward.clip.texts(["a red cat"] * 3), reward.clip.images(images)
    expected = (text * pixels).sum(1) / (text.norm(dim=1) * pixels.norm(dim=1))
    torch.testing.assert_close(reward.score(images, ["a red cat"] * 3), expected)


def test_stored_samples_score_like_their_pixels(study: Study) -> None:
    prompts = {p.id: p.text for p in study.prompts()}
    samples = study.samples()[:9]
    texts = [prompts[s.prompt_id] for s in samples]
    images = torch.stack([to_pixels(study.image(s)) for s in samples])
    for reward in rewards(study):
        scores = reward.score_samples(study, samples, texts)
        torch.testing.assert_close(scores, reward.score(images, texts), rtol=0, atol=1e-5)
        assert not scores.requires_grad
        low, high = reward.range
        assert ((scores >= low) & (scores <= high)).all()
        assert len(reward.score_samples(study, [], [])) == 0


def test_rewards_are_differentiable_to_the_image(study: Study) -> None:
    """The gradient of the score equals its slope, and a step along it raises the score."""
    image = to_pixels(study.image(study.samples()[1]))[None] * 0.8 + 0.1
    for reward in rewards(study):
        assert reward.differentiable
        pixels = image.clone().requires_grad_()
        before = reward.score(pixels, ["a red colored apple"])
        before.sum().backward()
        slope = pixels.grad
        assert slope is not None
        step = 1e-2 * slope / slope.norm()
        with torch.no_grad():
            after = reward.score(image + step, ["a red colored apple"])
        gained = float((after - before).item())
        assert gained == pytest.approx(float((slope * step).sum()), rel=0.1)


def test_a_reward_says_before_it_is_loaded_whether_it_is_differentiable(
    study: Study, tmp_path: Path
) -> None:
    for name in ("clip_score", "clip_head", "runs/fit-clip_head"):
        assert is_differentiable(study, name)
    own = own_reward(tmp_path)
    assert not is_differentiable(study, str(own))
    with pytest.raises(UserError, match="unknown reward 'no_such'"):
        is_differentiable(study, "no_such")


def test_stored_images_are_scored_on_the_device_of_the_text(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward, seen = load_reward(study, "clip_score"), list[str]()
    assert isinstance(reward, ClipScore)
    words = reward.clip.texts(["a red cat"]).to("meta")

    def score(images: Tensor, texts: Tensor) -> Tensor:
        seen.extend([images.device.type, texts.device.type])
        return torch.zeros(1)

    monkeypatch.setattr(ClipEncoder, "texts", lambda *_: words)
    monkeypatch.setattr(reward, "score_embeddings", score)
    reward.score_samples(study, study.samples()[:1], ["a red cat"])
    assert seen == ["meta", "meta"]


def test_loaded_reward_scores_as_it_did_after_training(study: Study, tmp_path: Path) -> None:
    prompts = {p.id: p.text for p in study.prompts()}
    samples = study.samples()
    texts = [prompts[s.prompt_id] for s in samples]
    head = ClipHead(**QUICK)
    run = fit(study, FitConfig(name="again"), head)
    expected = head.score_samples(study, samples, texts)
    found = load_reward(study, run.name).score_samples(study, samples, texts)
    assert torch.equal(found, expected)
    assert torch.equal(load_reward(study, "fit-again").score_samples(study, samples, texts), found)


def test_a_reward_that_is_nan_names_the_sample(study: Study) -> None:
    @dataclass
    class Broken(Reward):
        def score(self, images, prompts):
            return torch.where(images.mean((1, 2, 3)) > 0.5, float("nan"), 1.0)

    broken = Broken()
    samples = study.samples()
    means = torch.stack([to_pixels(study.image(s)).mean() for s in samples])
    first = samples[int((means > 0.5).nonzero()[0])]
    with pytest.raises(UserError, match=f"Broken is NaN or infinite for sample {first.id}"):
        broken.score_samples(study, samples, [""] * len(samples))


@dataclass
class Reads(Reward):
    """The number that the text says, times the image's brightness; in double precision."""

    def score(self, images, prompts):
        assert len(images) == len(prompts) <= BATCH_SIZE
        numbers = torch.tensor([float(text) for text in prompts], dtype=torch.float64)
        return (numbers * images.mean((1, 2, 3))).requires_grad_()


def test_each_sample_is_scored_with_its_own_text_in_portions(study: Study) -> None:
    samples = study.samples()[: BATCH_SIZE + 6]
    scores = Reads().score_samples(study, samples, [str(i) for i in range(len(samples))])
    means = torch.stack([to_pixels(study.image(s)).mean() for s in samples])
    torch.testing.assert_close(scores, torch.arange(len(samples)) * means)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad


@pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
def test_a_reward_without_one_score_for_each_image_is_refused(
    study: Study, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(Reads, "score", lambda self, images, prompts: torch.ones(shape))
    with pytest.raises(UserError, match=r"Reads gave scores of shape \[.* for 2 images"):
        Reads().score_samples(study, study.samples()[:2], ["1", "2"])


# names


def test_the_folders_that_a_reward_reads(study: Study, clip: Path, tmp_path: Path) -> None:
    own = own_reward(tmp_path)
    weights = study.find_run("fit-clip_head").weights
    assert reward_folders(study, "clip_score") == [clip]
    assert reward_folders(study, "runs/fit-clip_head") == [clip, weights]
    assert reward_folders(study, str(own)) == []


@pytest.mark.parametrize(
    ("name", "kind", "weights"),
    [("clip_score", ClipScore, False), ("runs/fit-clip_head", ClipHead, True)],
)
def test_a_reward_is_prepared_on_the_device_asked_for(
    study: Study, monkeypatch: pytest.MonkeyPatch, name: str, kind: type, weights: bool
) -> None:
    seen, folder = [], study.find_run("fit-clip_head").weights

    def prepare(self, study, device, weights=None) -> None:
        seen.append((study, device, weights))

    monkeypatch.setattr(kind, "prepare", prepare)
    assert isinstance(load_reward(study, name, "meta"), kind)
    found = load_reward(study, name)
    assert seen == [(study, device, folder if weights else None) for device in ("meta", "cpu")]
    if isinstance(found, ClipHead):
        # with the options that it was fitted with
        assert found == ClipHead(**QUICK)


def test_clip_is_loaded_to_the_device_asked_for(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(ClipEncoder, "load", lambda *which: seen.append(which))
    ClipScore().prepare(study, "meta")
    assert seen == [(study.info.clip_model, "meta")]


def test_a_fit_may_be_named_by_any_path_to_it(study: Study) -> None:
    path = study.path / "runs" / "fit-clip_head"
    found, named = load_reward(study, str(path)), load_reward(study, "runs/fit-clip_head")
    assert found == named
    assert reward_folders(study, str(path)) == reward_folders(study, "runs/fit-clip_head")


def test_unknown_reward_names_the_nearest(study: Study) -> None:
    with pytest.raises(UserError, match="did you mean 'runs/fit-clip_head'"):
        load_reward(study, "runs/fit-clip_hed")
    with pytest.raises(UserError, match="did you mean 'clip_score'"):
        load_reward(study, "clip_scor")
    with pytest.raises(UserError, match="unknown reward 'prompts'"):
        load_reward(study, "prompts")
    with pytest.raises(
        UserError, match=r"must be trained first: run sayso fit .* --reward clip_head"
    ):
        load_reward(study, "clip_head")
    with pytest.raises(UserError, match="did you mean 'clip_head'"):
        load_trainable_reward("clip_hed")
    with pytest.raises(UserError, match="needs no training; fit one of clip_head"):
        load_trainable_reward("clip_score")


def test_own_reward_file(study: Study, tmp_path: Path) -> None:
    file = tmp_path / "brightness.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from sayso.rewards import Reward\n\n\n"
        "@dataclass\n"
        "class Brightness(Reward):\n"
        "    power: float = 1.0\n\n"
        "    def score(self, images, prompts):\n"
        "        return images.mean((1, 2, 3)) ** self.power\n"
    )
    samples = study.samples()[:70]
    scores = load_reward(study, str(file)).score_samples(study, samples, [""] * len(samples))
    expected = torch.stack([to_pixels(study.image(s)).mean() for s in samples])
    torch.testing.assert_close(scores, expected)


def test_unfinished_fit_is_refused(study: Study) -> None:
    study.run("fit", "half", {"reward": "clip_head", "options": {}})
    with pytest.raises(UserError, match="not finished; run the sayso fit"):
        load_reward(study, "runs/fit-half")


def test_reward_of_another_clip_is_refused(clip: Path, tmp_path: Path) -> None:
    own = Path(tmp_path / "clip")
    tiny_clip(own)
    study = colour_study(tmp_path / "study", own, train=4)
    rate_all(study)
    fit(study, FitConfig(), ClipHead(**QUICK))
    tiny_clip(own, seed=5)
    with pytest.raises(UserError, match="trained with another CLIP"):
        load_reward(study, "runs/fit-clip_head")


def test_damaged_weights_are_refused(clip: Path, tmp_path: Path) -> None:
    """Cut short, or of a head of another shape; either way it says what to do."""
    study = colour_study(tmp_path / "study", clip, train=4)
    rate_all(study)
    run = fit(study, FitConfig(), ClipHead(**QUICK))
    weights = run.weights / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"cannot be loaded.*; delete the run and fit again"):
        load_reward(study, run.name)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    save_file({n: t for n, t in tensors.items() if n != "layers.0.bias"}, weights)
    with pytest.raises(UserError, match=r"layers\.0\.bias.*; delete the run and fit again"):
        load_reward(study, run.name)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0}, {"n_altered": -1}, {"learning_rate": math.nan}, {"patience": 0},
        {"prompt_classification_weight": -0.1}, {"batch_size": 0}, {"hidden_width": 0},
    ],
)  # fmt: skip
def test_options_out_of_range_are_named(options: dict) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        ClipHead(**options)


def test_own_file_that_was_edited_since_its_fit_is_refused(study: Study, tmp_path: Path) -> None:
    copied = Study.open(Path(shutil.copytree(study.path, tmp_path / "study")))
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from dataclasses import dataclass\n"
        "from sayso.rewards.clip_head import ClipHead\n"
        "@dataclass\n"
        "class Mine(ClipHead):\n"
        "    hidden_width: int = 8\n"
        "    max_epochs: int = 1\n"
    )
    run, config = fit(copied, FitConfig(reward=str(mine))), FitConfig(reward=str(mine))
    load_reward(copied, run.name)
    before = mine.read_text()
    mine.write_text(before + "\n\n# edited\n")
    says = rf"runs/fit-mine was made with another version of {mine} .*; restore the file"
    with pytest.raises(UserError, match=says):
        load_reward(copied, run.name)
    with pytest.raises(UserError, match=says):
        fit(copied, config)
    load_reward(copied, fit(copied, FitConfig(reward=str(mine), name="anew")).name)
    mine.write_text(before)
    load_reward(copied, run.name)
    assert fit(copied, config).finished
