"""CLIP: preprocessing and embeddings equal transformers' own, gradients pass, the cache holds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import MAX_TOKENS, WIDTH, colour_study, tiny_clip
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel

from sayso.base.errors import UserError
from sayso.data import clip
from sayso.data.clip import ClipEncoder, embed_samples, resolve_clip, to_pixels
from sayso.data.clip_preprocessing import read_preprocessing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ClipEncoder:
    return ClipEncoder.load(str(folder))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth picture, so that 8-bit rounding is the only difference between resizers."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(40, 215, (5, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 12}, "resample": 2},
        {"size": {"height": 18, "width": 16}, "do_center_crop": False},
        {"do_resize": False, "crop_size": {"height": 11, "width": 13}},
        {"do_resize": False, "do_center_crop": False, "do_normalize": False},
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 60, "width": 60}},
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (40, 25), (25, 41)])
def test_preprocessing_equals_transformers(
    tmp_path: Path, options: dict, size: tuple[int, int]
) -> None:
    theirs = CLIPImageProcessor(**options)
    theirs.save_pretrained(tmp_path)
    image = picture(*size)
    expected = torch.tensor(np.array(theirs(image, return_tensors="np")["pixel_values"]))
    ours = read_preprocessing(tmp_path)(to_pixels(image)[None])
    assert ours.shape == expected.shape
    # they round to 8 bits after each of two passes; a level is 1/255 before dividing by about 0.26
    assert (ours - expected).abs().max() < 1.5 / 255 / 0.26


def test_old_and_new_preprocessor_files_read_the_same(tmp_path: Path) -> None:
    row = {"crop_size": 16, "size": 16, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(row))
    old = read_preprocessing(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    new = {
        **row, "crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 16},
    }  # fmt: skip
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": new}))
    assert read_preprocessing(tmp_path) == old
    assert old.size_px == 16
    assert old.crop_px == (16, 16)


def test_preprocessing_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no preprocessor_config\.json"):
        read_preprocessing(tmp_path)
    row = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 1}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(row))
    with pytest.raises(UserError, match="filter 1"):
        read_preprocessing(tmp_path)
    row |= {"resample": 3, "do_resize": False, "crop_size": 50}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(row))
    with pytest.raises(UserError, match="crops 50×50 pixels out of 32×32"):
        read_preprocessing(tmp_path)(torch.zeros(1, 3, 32, 32))


def test_embeddings_equal_transformers(folder: Path, encoder: ClipEncoder) -> None:
    theirs = CLIPModel.from_pretrained(folder).eval()
    texts = ["two dogs", "a green colored dog on the moon"]
    images = [picture(32, 32), picture(20, 48, seed=1)]
    tokens = encoder.tokenizer(texts, padding="max_length", return_tensors="pt")
    pixels = torch.cat([encoder.preprocessing(to_pixels(i)[None]) for i in images])
    with torch.no_grad():
        whole = theirs(**tokens, pixel_values=pixels)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(unit(encoder.texts(texts)), whole.text_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(unit(encoder.images(images)), whole.image_embeds, rtol=0, atol=1e-6)
    assert encoder.texts(texts).shape == (2, WIDTH) == (2, encoder.width)


def test_tensors_and_pictures_embed_alike(encoder: ClipEncoder) -> None:
    images = [picture(32, 32, seed=s) for s in range(3)]
    stacked = torch.stack([to_pixels(i) for i in images])
    torch.testing.assert_close(encoder.images(images), encoder.images(stacked))


def test_gradient_reaches_the_pixels(encoder: ClipEncoder) -> None:
    pixels = to_pixels(picture(32, 32))[None].double().requires_grad_()
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))

    def along(x: torch.Tensor) -> torch.Tensor:
        return (encoder.images(x)[0] * direction).sum()

    along(pixels).backward()
    nudge = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1)).double()
    step = 2e-3
    with torch.no_grad():
        slope = (along(pixels + step * nudge) - along(pixels - step * nudge)) / (2 * step)
    assert float((pixels.grad * nudge).sum()) == pytest.approx(float(slope), rel=0.02)
    assert all(p.grad is None for p in encoder.model.parameters())


def test_texts_do_not_depend_on_their_company(encoder: ClipEncoder, folder: Path) -> None:
    alone = ClipEncoder.load(str(folder)).texts(["a dog"])
    together = encoder.texts(["a dog", "five white dogs in the city", "a dog"])
    assert torch.equal(together[0], alone[0])
    many = ClipEncoder.load(str(folder)).texts([f"{n} dogs" for n in range(70)] + ["a dog"])
    assert torch.equal(many[-1], alone[0])


def test_a_few_texts_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "KEPT_TEXTS", 40)
    encoder, texts = ClipEncoder.load(str(folder)), [f"{n} dogs" for n in range(100)]
    expected = ClipEncoder.load(str(folder)).texts(texts[:60:10])
    assert torch.equal(encoder.texts(texts)[:60:10], expected)
    assert len(encoder._texts) == 40
    for n in range(0, 100, 10):
        encoder.texts(texts[n : n + 10] * 2)
        assert len(encoder._texts) == 40
    assert torch.equal(encoder.texts(texts[:60:10]), expected)


def test_embeddings_are_fp32_under_anybodys_autocast(folder: Path, encoder: ClipEncoder) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        other = ClipEncoder.load(str(folder))
        text, image = other.texts(["a dog"]), other.images([picture(32, 32)])
    assert torch.equal(text, encoder.texts(["a dog"]))
    assert torch.equal(image, encoder.images([picture(32, 32)]))


def test_long_prompt_is_refused_not_cut(encoder: ClipEncoder) -> None:
    fits = "a" * (MAX_TOKENS - 2)
    assert encoder.texts([fits]).isfinite().all()
    with pytest.raises(
        UserError, match=f"{MAX_TOKENS + 1} tokens, but CLIP reads at most {MAX_TOKENS}"
    ):
        encoder.texts(["a dog", fits + "a"])


def test_unknown_symbol_is_refused(encoder: ClipEncoder) -> None:
    with pytest.raises(UserError, match="does not know"):
        encoder.texts(["a café in the city"])


def test_refuses_weights_that_are_no_safetensors(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "clip"))
    weights = copy / "model.safetensors"
    torch.save(CLIPModel.from_pretrained(folder).state_dict(), weights)
    with pytest.raises(UserError, match="cannot be loaded"):
        ClipEncoder.load(str(copy))
    weights.rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="only safetensors"):
        ClipEncoder.load(str(copy))


def test_refuses_what_is_no_clip(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder and could not be fetched"):
        resolve_clip(str(tmp_path / "nowhere"))
    copy = Path(shutil.copytree(folder, tmp_path / "clip"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "siglip"}))
    with pytest.raises(UserError, match="'siglip' model"):
        ClipEncoder.load(str(copy))


def test_refuses_missing_weights(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(folder, tmp_path / "clip"))
    tensors = load_file(copy / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights .*1, such as visual_projection\.weight"):
        ClipEncoder.load(str(copy))


def test_hash_follows_the_weights(folder: Path, tmp_path: Path, encoder: ClipEncoder) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert ClipEncoder.load(str(copy)).hash == encoder.hash
    assert ClipEncoder.load(str(tiny_clip(tmp_path / "other", seed=1))).hash != encoder.hash


def test_samples_are_embedded_once(
    folder: Path, tmp_path: Path, encoder: ClipEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sayso.data.clip.CHUNK", 5)
    study = colour_study(tmp_path / "study", folder, train=2)
    samples = study.samples()[:12]
    first = embed_samples(study, encoder, samples)
    expected = encoder.images([study.image(s) for s in samples])
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "images", lambda _: pytest.fail("embedded again"))
        again = embed_samples(study, encoder, [samples[3], samples[0], samples[3]])
    assert torch.equal(again, first[[3, 0, 3]])
    with pytest.raises(UserError, match="is missing"):
        embed_samples(study, encoder, [*samples, *_without_image(study)])


def _without_image(study) -> list:
    last = study.samples()[-1]
    (study.path / last.path).unlink()
    return [last]


def test_interrupted_embedding_goes_on_where_it_was(
    folder: Path, tmp_path: Path, encoder: ClipEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sayso.data.clip.CHUNK", 4)
    whole, cut = (colour_study(tmp_path / n, folder, train=2) for n in ("whole", "cut"))
    expected = embed_samples(whole, encoder, whole.samples())
    calls = []

    def stop_at_third(images):
        images = list(images)
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return images_of(images)

    images_of = encoder.images
    monkeypatch.setattr(encoder, "images", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        embed_samples(cut, encoder, cut.samples())
    assert torch.equal(embed_samples(cut, encoder, cut.samples()), expected)
    assert sum(calls) == len(cut.samples()) + 4


def test_damaged_cache_is_made_again(folder: Path, tmp_path: Path, encoder: ClipEncoder) -> None:
    study = colour_study(tmp_path / "study", folder, train=2)
    first = embed_samples(study, encoder, study.samples())
    for shard in study.cache.rglob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:50])
    assert torch.equal(embed_samples(study, encoder, study.samples()), first)


def test_another_clip_has_another_cache(folder: Path, tmp_path: Path, encoder: ClipEncoder) -> None:
    study = colour_study(tmp_path / "study", folder, train=1)
    other = ClipEncoder.load(str(tiny_clip(tmp_path / "other", seed=1)))
    first = embed_samples(study, encoder, study.samples())
    assert not torch.equal(embed_samples(study, other, study.samples()), first)
