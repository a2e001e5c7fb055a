"""Published architectures: as large as the models are, and loadable by their families."""

from pathlib import Path

import pytest
import torch

from sayso.base.types import Size
from sayso.families._loading import family
from sayso.families._published import PUBLISHED, find_published, write_published

MILLIONS = {
    "runwayml/stable-diffusion-v1-5": ("unet", 859.5),
    "stabilityai/stable-diffusion-xl-base-1.0": ("unet", 2567.5),
    "stabilityai/stable-diffusion-3.5-medium": ("transformer", 2243.2),
    "black-forest-labs/FLUX.1-dev": ("transformer", 11_901.4),
    "Qwen/Qwen-Image": ("transformer", 20_430.4),
    "Tongyi-MAI/Z-Image": ("transformer", 6154.9),
}
"""Parameters of the networks as published, in millions."""
LANGUAGE_MODELS = {"Qwen/Qwen-Image": 8292.2, "Tongyi-MAI/Z-Image": 4022.5}
TEXT = {"text_encoder": 123.1, "text_encoder_2": 694.7, "text_encoder_3": 4762.3}


@pytest.mark.parametrize("name", MILLIONS)
def test_as_large_as_published(tmp_path: Path, name: str) -> None:
    model = find_published(name)
    assert model is not None
    folder = write_published(model, tmp_path / "model")
    policy = family(folder).load(folder, torch.device("meta"))
    _, millions = MILLIONS[name]
    counted = sum(p.numel() for p in policy.network.parameters()) / 1e6
    assert counted == pytest.approx(millions, rel=1e-4)
    if name in LANGUAGE_MODELS:
        text = sum(p.numel() for p in policy.text.parameters()) / 1e6
        assert text == pytest.approx(LANGUAGE_MODELS[name], rel=1e-3)
    policy.check_prompts(["two red dogs"])
    assert policy.latent_shape(Size(512, 256))[1:] == (32, 64)


def test_text_encoders_are_as_large_as_published(tmp_path: Path) -> None:
    model = find_published("stabilityai/stable-diffusion-3.5-medium")
    assert model is not None
    folder = write_published(model, tmp_path / "model")
    policy = family(folder).load(folder, torch.device("meta"))
    counted = {
        part: sum(p.numel() for p in module.parameters()) / 1e6
        for part, module in policy.text.items()
    }
    # with a projection the first is a little larger than in Stable Diffusion 1
    assert counted == pytest.approx(TEXT | {"text_encoder": 123.65}, rel=1e-3)


def test_what_is_not_known_here() -> None:
    assert find_published("owner/name") is None
    assert len({name for model in PUBLISHED for name in model.names}) == 8
