"""Rewards that others trained: as their authors compute them, everywhere a reward is named."""

import io
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import published
import pytest
import torch
from models import edit, spoiled
from PIL import Image
from rich.filesize import decimal
from safetensors.torch import load_file
from studies import random_study
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor

from sayso.base.errors import UserError
from sayso.cli import commands as cli
from sayso.data.clip import to_pixels
from sayso.rewards import Reward, _contract, load_reward
from sayso.rewards.aesthetic import Aesthetic
from sayso.stages._reward_footprint import reward_footprint
from sayso.stages.align import AlignConfig, plan
from sayso.stages.generate import GenerateConfig, _on_device
from sayso.study.identity import reward_identity
from sayso.study.study import Study

TEXTS = ["a dog", "two cats on a red sofa"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study with images, and with every reward of `published`; shared, not to be changed."""
    folder = tmp_path_factory.mktemp("rewards")
    study = random_study(folder)
    sayso("generate", study, "--per-prompt", 2)
    sayso("generate", study, "--prompts", "test", "--per-prompt", 2)
    for name in published.GIVEN:
        published.add(study, name, folder / name)
    return study


@pytest.fixture
def study(made: Study, tmp_path: Path) -> Study:
    """A copy that a test may change."""
    return Study.open(Path(shutil.copytree(made.path, tmp_path / "study")))


def sayso(command: str, study: Study, *flags: object) -> None:
    cli.run([command, str(study.path), *map(str, flags)])


def loaded(study: Study, name: str) -> Reward:
    return load_reward(study, f"runs/reward-{name}")


def pictures(width: int, height: int) -> list[Image.Image]:
    """Two pictures of smooth random colours."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in TEXTS]
    return [Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC) for c in coarse]


def stacked(images: list[Image.Image]) -> Tensor:
    return torch.stack([to_pixels(image) for image in images])


# everywhere


@pytest.mark.parametrize("name", published.GIVEN)
def test_an_added_reward_selects_trains_and_judges(name: str, study: Study) -> None:
    run = f"runs/reward-{name}"
    sayso("generate", study, "--per-prompt", 1, "--best-of", 2, "--reward", run)
    chosen = study.samples(f"base@best-1-of-2-by-reward-{name}")
    assert len(chosen) == len(study.prompts("train"))
    texts = {prompt.id: prompt.text for prompt in study.prompts()}
    drawn = study.samples("base")
    scores = load_reward(study, run).score_samples(
        study, drawn, [texts[s.prompt_id] for s in drawn]
    )
    best: dict[str, float] = {}
    for sample, score in zip(drawn, scores.tolist(), strict=True):
        best[sample.prompt_id] = max(score, best.get(sample.prompt_id, score))
    score_of = {(s.prompt_id, s.seed): x for s, x in zip(drawn, scores.tolist(), strict=True)}
    assert all(score_of[s.prompt_id, s.seed] == best[s.prompt_id] for s in chosen)

    sayso(
        "align", study, "--aligner", "grpo", "--reward", run, "--max-steps", 1, "--batch-size", 4,
        "--images", 4, "--group-size", 2, "--steps-per-image", 1, "--micro-batch-size", 4,
    )  # fmt: skip
    tuned = study.find_run("align-grpo")
    assert tuned.inputs is not None
    assert tuned.inputs["sources"][f"reward {run}"] == reward_identity(study, run)
    assert np.isfinite(tuned.history()[-1]["reward"])

    sayso("generate", study, "--prompts", "test", "--per-prompt", 2, "--model", tuned.name)
    threshold = float(scores.median())
    sayso(
        "evaluate", study, "--model", tuned.name, "--reward", run, "--judge", "reward",
        "--judge-reward", run, f"--threshold={threshold}",
    )  # fmt: skip
    result = study.find_run("evaluate-align-grpo").result
    assert result["identities"]["reward"] == reward_identity(study, run)
    assert result["judged"] == f"scored {threshold:g} or more by reward-{name}"
    assert np.isfinite(result["scores"]["aligned"]["reward"]["mean"])
    sayso("report", study)
    assert f"reward-{name}" in (study.path / "report.html").read_text()


# as the authors compute them


@pytest.mark.parametrize(("width", "height"), [(16, 16), (40, 28)])
def test_pickscore_is_clips_logit_of_its_processor(made: Study, width: int, height: int) -> None:
    folder = made.find_run("reward-pickscore").weights
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    images = pictures(width, height)
    inputs = processor(text=TEXTS, images=images, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.diagonal()
    found = loaded(made, "pickscore").score(stacked(images), TEXTS)
    # Pillow resizes in whole numbers
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if width == 16 else 1e-3)


def test_gradients_pass_through_pixels_that_are_not_rounded(made: Study) -> None:
    reward, images = loaded(made, "pickscore"), stacked(pictures(40, 28))
    exact, smooth = reward.score(images, TEXTS), reward.score(images.requires_grad_(), TEXTS)
    assert not torch.equal(exact, smooth)
    torch.testing.assert_close(exact, smooth, rtol=0, atol=0.05)
    (slope,) = torch.autograd.grad(smooth.sum(), images)
    step = 1e-2 * slope / slope.norm()
    with torch.enable_grad():
        gained = reward.score(images + step, TEXTS).sum() - smooth.sum()
    assert gained.item() == pytest.approx(float((slope * step).sum()), rel=0.1)


@pytest.mark.parametrize("name", published.GIVEN)
def test_a_forecast_counts_the_weights_of_a_reward(made: Study, name: str) -> None:
    reward, run = loaded(made, name), f"runs/reward-{name}"
    modules = [getattr(reward, k, None) for k in ("_network", "_model")]
    modules.append(getattr(getattr(reward, "clip", None), "model", None))
    held = [p for module in modules if isinstance(module, nn.Module) for p in module.parameters()]
    held += [reward._weight, reward._bias] if isinstance(reward, Aesthetic) else []
    weights = sum(tensor.nbytes for tensor in held)
    assert reward_footprint(made, run).weights == weights
    assert (weights > 0) == (name not in ("jpeg", "remote"))
    planned = plan(made, AlignConfig(aligner="grpo", reward=run, forecast_for="24GB"))
    assert planned.get(f"memory, reward {run}") == (decimal(weights) if weights else None)


def test_texts_that_are_too_long_are_cut_as_the_authors_do_it(
    made: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made.find_run("reward-pickscore").weights
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    images, long = pictures(16, 16), [f"{'a red cat and ' * 9}{text}" for text in TEXTS]
    inputs = processor(
        text=long, images=images, padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.diagonal()
    reward = loaded(made, "pickscore")
    torch.testing.assert_close(reward.score(stacked(images), long), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["pickscore", "image_reward"])
def test_it_is_said_once_that_texts_are_cut(
    made: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    reward = loaded(made, name)
    texts = ["a red cat", *(f"{'a red cat and ' * 9}{n}" for n in range(3))]
    for text in texts:
        reward.checked_score(stacked(pictures(16, 16))[:1], [text], ["it"])
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("prompts are longer than reward") == 1
    monkeypatch.setattr(_contract, "BATCH_SIZE", 1)
    loaded(made, name).score_samples(made, made.samples()[:4], texts)
    assert capsys.readouterr().err.count("3 of 4 prompts are longer than reward") == 1


def test_aesthetic_is_its_five_layers_in_one(made: Study, tmp_path: Path) -> None:
    weights = made.find_run("reward-aesthetic").weights
    model = CLIPModel.from_pretrained(weights / "clip")
    processor = CLIPProcessor.from_pretrained(weights / "clip")
    images = pictures(16, 16)
    pixels = processor(images=images, return_tensors="pt").pixel_values
    with torch.no_grad():
        embeddings = model.visual_projection(model.vision_model(pixels).pooler_output)
        expected = published.aesthetic_layers()(F.normalize(embeddings, dim=1))[:, 0]
    found = loaded(made, "aesthetic").score(stacked(images), ["", ""])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    kept = load_file(weights / "aesthetic.safetensors")
    assert sum(tensor.numel() for tensor in kept.values()) == published.WIDTH + 1


def test_the_first_version_of_aesthetic_is_one_layer(made: Study, tmp_path: Path) -> None:
    layer = torch.nn.Linear(published.WIDTH, 1)
    torch.save(layer.state_dict(), tmp_path / "v1.pth")
    clip = made.find_run("reward-aesthetic").weights / "clip"
    weights = ["--weights", tmp_path / "v1.pth", "--clip", clip]
    sayso("reward", made, "--reward", "aesthetic", "--name", "v1", *weights)
    image = stacked(pictures(16, 16))
    reward = loaded(made, "v1")
    with torch.no_grad():
        expected = layer(F.normalize(reward.clip.images(image), dim=1))[:, 0]
    torch.testing.assert_close(reward.score(image, ["", ""]), expected)


def test_jpeg_is_bytes_per_pixel(made: Study) -> None:
    images = pictures(40, 28)
    sizes = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        sizes.append(len(file.getvalue()) / (40 * 28))
    found = loaded(made, "jpeg").score(stacked(images), TEXTS)
    assert found.tolist() == pytest.approx(sizes)
    small = load_reward(made, "jpeg").score(stacked(images), TEXTS)
    assert (small < 0).all()
    with pytest.raises(UserError, match="pixels that are NaN"):
        loaded(made, "jpeg").score(stacked(images) * float("nan"), TEXTS)


# what a name stands for


def test_a_reward_is_known_by_its_weights_and_options_not_by_places(
    made: Study, study: Study, tmp_path: Path
) -> None:
    first = reward_identity(study, "runs/reward-pickscore")
    given = published.pickscore(tmp_path)
    sayso("reward", study, "--name", "same", *given.flags)
    assert reward_identity(study, "runs/reward-same") == first
    edit(given.parts["weights"] / "model.safetensors", spoiled("logit_scale", 1.0))
    sayso("reward", study, "--name", "other", *given.flags)
    assert reward_identity(study, "runs/reward-other") != first
    for quality in (90, 80):
        flags = ["--reward", "jpeg", "--quality", quality, "--name", f"q{quality}"]
        sayso("reward", study, *flags)
    found = {reward_identity(study, f"runs/reward-q{q}") for q in (90, 80)}
    assert len(found | {reward_identity(study, "jpeg")}) == 3


def test_a_study_whose_clip_is_elsewhere_can_use_a_reward_that_has_its_own(study: Study) -> None:
    study.info = study.with_models(clip_model="somebody/clip").info
    assert reward_identity(study, "runs/reward-pickscore")
    sayso("generate", study, "--per-prompt", 1, "--best-of", 2, "--reward", "reward-pickscore")


def test_a_selection_by_a_reward_of_the_same_name_is_made_anew(study: Study) -> None:
    def chosen() -> set[tuple[str, int]]:
        sayso("generate", study, "--per-prompt", 1, "--best-of", 2, "--reward", "reward-jpeg")
        model = "base@best-1-of-2-by-reward-jpeg"
        return {(sample.prompt_id, sample.seed) for sample in study.samples(model)}

    large, before = chosen(), len(study.runs("generate"))
    assert chosen() == large
    assert len(study.runs("generate")) == before
    shutil.rmtree(study.find_run("reward-jpeg").path)
    sayso("reward", study, "--reward", "jpeg", "--quality", 90)
    assert len(large) == len(chosen()) == 3
    assert not chosen() & large
    assert len(study.runs("generate")) == before + 1


def test_the_reward_that_selects_is_loaded_where_images_were_drawn(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GenerateConfig(reward="runs/reward-jpeg", best_of=2)
    reward, asked = load_reward(study, config.reward), list[object]()
    assert _on_device(study, config, reward) is reward
    card = SimpleNamespace(device=torch.device("meta"))
    monkeypatch.setattr("sayso.stages.generate.make_accelerator", lambda _: card)
    monkeypatch.setattr("sayso.rewards.load_reward", lambda *which: asked.extend(which) or reward)
    _on_device(study, config, reward)
    assert asked == [study, config.reward, card.device]


def test_files_that_were_replaced_since_are_no_finished_run(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = published.pickscore(tmp_path)
    command = ["reward", study, "--name", "mine", *given.flags]
    sayso(*command)
    sayso(*command)
    assert "runs/reward-mine is finished" in capsys.readouterr().err
    edit(given.parts["weights"] / "model.safetensors", spoiled("logit_scale", 1.0))
    with pytest.raises(UserError, match=r"inputs of runs/reward-mine have changed.*weights"):
        sayso(*command)
    shutil.rmtree(given.parts["weights"])
    sayso(*command)
    assert loaded(study, "mine").score(stacked(pictures(16, 16)), TEXTS).isfinite().all()


def test_weights_damaged_since_are_refused(study: Study) -> None:
    file = study.find_run("reward-pickscore").weights / "model.safetensors"
    edit(file, spoiled("visual_projection.weight", float("nan")))
    with pytest.raises(UserError, match=r"NaN or infinite \(1, such as visual_projection.weight"):
        loaded(study, "pickscore")


# the user's mistakes


Refusal = Callable[..., str]


@pytest.fixture
def refusal(made: Study, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """The line in which `sayso reward` ends, with exit code 2 and without a run."""

    def refused(*flags: object) -> str:
        before = sorted(made.path.glob("runs/*"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(["reward", str(made.path), *map(str, flags), "--name", "refused"])
        assert stop.value.code == 2
        assert sorted(made.path.glob("runs/*")) == before
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        return said

    return refused


def test_parts_that_cannot_be_used_are_refused(refusal: Refusal, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert f"weights of pickscore '{nowhere}' does not exist" in refusal("--weights", nowhere)
    assert "could not be fetched from the hub" in refusal("--weights", "owner/name")
    assert f"{tmp_path} has no config.json" in refusal("--weights", tmp_path)
    said = refusal("--reward", "jpeg", "--weights", tmp_path)
    assert said.endswith("reward jpeg does not take --weights")
    said = refusal("--reward", "aesthetic", "--tokenizer", tmp_path)
    assert said.endswith("does not take --tokenizer; it takes --weights and --clip")
    assert "has no default weights; give --weights" in refusal("--reward", "aesthetic")
    assert "quality 0 is not from 1 to 100" in refusal("--reward", "jpeg", "--quality", 0)
    assert "is trained on ratings: run sayso fit" in refusal("--reward", "clip_head")
    assert "unknown reward 'pikscore'" in refusal("--reward", "pikscore")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "logit_scale"}, "lacks .*logit_scale"),
        (lambda t: t | {"extra": torch.zeros(1)}, "does not know .*extra"),
        (lambda t: {f"module.{k}": v for k, v in t.items()}, "begin with 'module.'"),
        (lambda t: t | {"logit_scale": torch.tensor(float("nan"))}, "NaN or infinite"),
    ],
)
def test_weights_that_are_not_the_models_are_refused(
    refusal: Refusal, tmp_path: Path, change: Callable[..., dict[str, Tensor]], said: str
) -> None:
    folder = published.pickscore(tmp_path).parts["weights"]
    edit(folder / "model.safetensors", change)
    line = refusal("--weights", folder)
    assert re.search(said, line)
    assert str(folder) in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {f"net.{k}": v for k, v in t.items()}, "net.layers.0.bias"),
        (lambda t: {k: v for k, v in t.items() if k != "layers.4.bias"}, "layers.4"),
        (lambda t: {k: v for k, v in t.items() if "layers.4" not in k}, "do not fit"),
        (lambda t: {k: v for k, v in t.items() if "layers.0" not in k}, "embeddings of width 20"),
        (lambda t: t | {"layers.0.bias": t["layers.0.bias"] / 0}, "NaN or infinite"),
        (lambda t: {"step": 3}, "does not hold tensors by name"),
        (lambda t: {"model": Path("x")}, "could run code"),
    ],
)
def test_another_pickle_than_the_authors_is_refused(
    refusal: Refusal, tmp_path: Path, change: Callable[..., object], said: str
) -> None:
    given = published.aesthetic(tmp_path)
    file = given.parts["weights"]
    torch.save(change(torch.load(file)), file)
    line = refusal("--reward", "aesthetic", *given.flags)
    assert said in line


def test_what_is_no_checkpoint_at_all_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    for content in (b"", b"nonsense", pickle.dumps(print), b"version https://git-lfs.github.com"):
        file.write_bytes(content)
        assert str(file) in refusal("--reward", "aesthetic", "--weights", file, "--clip", tmp_path)


def test_a_reward_that_must_be_added_first_says_how(made: Study) -> None:
    with pytest.raises(UserError, match=r"must be added .*--reward pickscore, then give runs/rew"):
        load_reward(made, "pickscore")
    with pytest.raises(UserError, match="did you mean 'runs/reward-pickscore'"):
        load_reward(made, "runs/reward-pikscore")


def test_ones_own_reward_is_added_with_other_options(study: Study, tmp_path: Path) -> None:
    own = tmp_path / "bright.py"
    text = (Path(__file__).parent.parent / "docs" / "rewards.md").read_text()
    own.write_text(text.partition("```python\n")[2].partition("```")[0])
    sayso("reward", study, "--reward", own, "--power", 2)
    image = stacked(pictures(16, 16))
    found = load_reward(study, "reward-bright").score(image, TEXTS)
    torch.testing.assert_close(found, image.mean(dim=(1, 2, 3)) ** 2)
    before = reward_identity(study, "runs/reward-bright")
    own.write_text(own.read_text().replace("mean(dim", "amax(dim"))
    assert reward_identity(study, "runs/reward-bright") != before
    with pytest.raises(UserError, match="made with another version of"):
        load_reward(study, "reward-bright")
    with pytest.raises(UserError, match="made with another version of"):
        sayso("reward", study, "--reward", own, "--power", 2)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("0.5", "reward Odd gave a float for 1 image;"),
        ("torch.ones(2)", "reward Odd gave scores of shape [2] for 1 image;"),
        ("torch.ones(1) / 0", "reward Odd is NaN or infinite for a grey image; look at its"),
    ],
)
def test_ones_own_reward_is_tried_before_it_is_added(
    refusal: Refusal, tmp_path: Path, returned: str, says: str
) -> None:
    own = tmp_path / "odd.py"
    own.write_text(
        "import torch\nfrom dataclasses import dataclass\nfrom sayso.rewards import Reward\n\n"
        "@dataclass\nclass Odd(Reward):\n    def score(self, images, prompts):\n"
        f"        return {returned}\n"
    )
    assert says in refusal("--reward", own)


def test_fit_refuses_a_reward_that_needs_none(made: Study) -> None:
    for flags in ([], ["--dry-run"]):
        with pytest.raises(UserError, match="reward 'jpeg' needs no training; fit one of"):
            sayso("fit", made, "--reward", "jpeg", *flags)
