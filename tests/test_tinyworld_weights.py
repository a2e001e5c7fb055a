"""The shipped weights: plain diffusers and transformers load them, and they are what we say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sayso.tinyworld import paths
from sayso.tinyworld.render import render
from sayso.tinyworld.scenes import VOCABULARY, random_scene, true_caption

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def pipeline():
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        paths().pipeline, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def fresh_scenes():
    rng = np.random.default_rng(20_261)
    scenes = [random_scene(rng) for _ in range(48)]
    images = np.stack([render(scene, rng) for scene in scenes])
    return scenes, torch.from_numpy(images).permute(0, 3, 1, 2)


def test_all_weights_are_fp16_safetensors_of_at_most_24_mb():
    files = [f for folder in paths() for f in Path(folder).rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 24e6
    assert not [f for f in files if f.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    safetensors = pytest.importorskip("safetensors.torch")
    for file in (f for folder in paths()[:2] for f in Path(folder).rglob("*.safetensors")):
        kinds = {t.dtype for t in safetensors.load_file(file).values() if t.is_floating_point()}
        assert kinds == {torch.float16}, file


def test_pipeline_draws_64_pixel_pictures_and_repeats_itself(pipeline):
    def draw(seed):
        return pipeline(
            ["three green cats on the moon"],
            num_inference_steps=4,
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images

    first = draw(3)
    assert first.shape == (1, 64, 64, 3)
    assert first.std() > 0.05
    np.testing.assert_array_equal(first, draw(3))
    assert np.abs(first - draw(4)).mean() > 0.02


def test_autoencoder_keeps_28_db_on_fresh_scenes(pipeline, fresh_scenes):
    pixels = fresh_scenes[1].float()
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels / 127.5 - 1).latents
        decoded = pipeline.vae.decode(latents).sample.clamp(-1, 1)
    error = (decoded.add(1).mul(127.5).round() - pixels).square().mean((1, 2, 3))
    assert float((10 * torch.log10(255**2 / error)).mean()) >= 28


def test_scaled_latents_have_unit_variance(pipeline, fresh_scenes):
    with torch.no_grad():
        latents = pipeline.vae.encode(fresh_scenes[1] / 127.5 - 1).latents
    assert float(latents.std() * pipeline.vae.config.scaling_factor) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("word", VOCABULARY)
def test_every_word_of_the_grammar_is_one_token(pipeline, word):
    assert len(pipeline.tokenizer(word).input_ids) == 3


def test_tokenizer_spells_unknown_words_and_cuts_at_16(pipeline):
    ids = pipeline.tokenizer("zebra").input_ids
    assert len(ids) == 2 + len("zebra")
    assert pipeline.tokenizer.decode(ids, skip_special_tokens=True).strip() == "zebra"
    assert pipeline.tokenizer.model_max_length == 16


def test_clip_finds_the_caption_of_a_picture(fresh_scenes):
    model = transformers.CLIPModel.from_pretrained(paths().clip, dtype=torch.float32)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(paths().clip)
    processor = transformers.CLIPImageProcessor.from_pretrained(paths().clip)
    scenes, images = fresh_scenes
    texts = [true_caption(scene) for scene in scenes]
    with torch.no_grad():
        out = model(
            **tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt"),
            pixel_values=processor(list(images), return_tensors="pt").pixel_values,
        )
    best = out.logits_per_image.argmax(1)
    right = [texts[i] == text for i, text in zip(best.tolist(), texts, strict=True)]
    assert np.mean(right) >= 0.8
