"""A random CLIP of a few thousand weights, and a study whose pictures it can tell apart."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from sayso.base.types import Prompt, Rating, Sample, Sampler, Size, digest, sample_id
from sayso.prompts.grammar import load_grammar, make_prompts, share_out
from sayso.study.info import StudyInfo
from sayso.study.study import Study

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MAX_TOKENS = 48
WIDTH = 24
SAMPLER = Sampler(num_inference_steps=2, guidance_scale=1.0, image_size=Size(32, 32))
RGB = {
    "red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "yellow": (240, 220, 40),
    "white": (250, 250, 250), "black": (10, 10, 10), "orange": (250, 140, 20),
    "purple": (140, 40, 170), "pink": (250, 150, 190), "brown": (120, 70, 30),
}  # fmt: skip


def tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write a CLIP in transformers' layout: 16-pixel images, letters as tokens."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer(folder)
    tower = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "projection_dim": WIDTH,
    }  # fmt: skip
    end = len(tokenizer) - 1
    text = {
        "vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end,
    }  # fmt: skip
    vision = {"image_size": 16, "patch_size": 8}
    CLIPModel(
        CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=WIDTH)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> CLIPTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [c + end for end in ("", "</w>") for c in LETTERS]
    vocabulary = {t: i for i, t in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)


def colour_study(path: Path, clip: Path, train: int = 24, per_prompt: int = 6) -> Study:
    """A study whose images are fields of one colour; prompts ask for a colour (train and seen)."""
    study = Study.create(path, StudyInfo("colours", 3, "none", str(clip), "", SAMPLER))
    grammar = load_grammar("tinyworld")
    sizes = share_out(grammar, train=1, seen=4, unseen=4)
    sizes = {**sizes, "train": {"colour": train}}
    study.write_prompts(make_prompts(grammar, sizes, seed=3))
    study.run("prompts", "", {"set": "tinyworld", "file": ""}).finish({})
    draw(study, study.prompts("all"), per_prompt)
    return study


def draw(study: Study, prompts: list[Prompt], per_prompt: int) -> None:
    """Half of the images have the colour that their prompt asks for."""
    samples, images = [], []
    for prompt in prompts:
        for k in range(per_prompt):
            key = sample_id(prompt.id, "base", k, SAMPLER)
            latents = study.latents_path("all")
            samples.append(
                Sample(key, prompt.id, "base", k, SAMPLER, study.image_path(key), latents)
            )
            images.append(_field(shown_colour(prompt, k), np.random.default_rng(int(key, 16))))
    study.add_samples(samples, images, {samples[0].id: torch.zeros(1)})


def shown_colour(prompt: Prompt, k: int) -> str:
    asked = str(prompt.slots.get("colour", "red"))
    others = sorted(RGB.keys() - {asked})
    return asked if k % 2 == 0 else others[(k * 7 + len(prompt.text)) % len(others)]


def _field(colour: str, rng: np.random.Generator) -> Image.Image:
    pixels = np.array(RGB[colour]) + rng.normal(0, 8, (32, 32, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def truth(sample: Sample) -> str:
    return "good" if sample.seed % 2 == 0 else "bad"


def rate_all(
    study: Study,
    value: Callable[[Sample], str] = truth,
    *,
    simulated: bool = True,
    rater: str = "r1",
    which: str = "train",
) -> None:
    """One rating of every image of some prompts by one rater."""
    wanted = {p.id for p in study.prompts(which)}
    study.feedback.add_ratings([
        Rating(digest([s.id, rater]), s.id, rater, "alignment", value(s), simulated, 1.0, 2.0)
        for s in study.samples()
        if s.prompt_id in wanted
    ])  # fmt: skip
