"""Every reward found on disk keeps its contract, trained or added first where it must be."""

from pathlib import Path

import published
import pytest
import torch
from clips import colour_study, rate_all, tiny_clip

from sayso.base.plugins import load_plugin, plugin_names
from sayso.data.clip import to_pixels
from sayso.rewards import Reward, TrainableReward, load_reward
from sayso.stages.fit import FitConfig, fit
from sayso.study.study import Study
from sayso.testing import check_reward


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    clip = tiny_clip(tmp_path_factory.mktemp("clip") / "clip")
    study = colour_study(tmp_path_factory.mktemp("study") / "study", clip, train=8, per_prompt=4)
    rate_all(study)
    return study


@pytest.mark.parametrize("name", plugin_names("reward"))
def test_reward(name: str, study: Study, tmp_path: Path) -> None:
    run = name
    if issubclass(load_plugin("reward", name, Reward), TrainableReward):
        run = fit(study, FitConfig(reward=name)).name
    elif name in published.GIVEN:
        run = published.add(study, name, tmp_path)
    samples = study.samples()[:5]
    texts = {p.id: p.text for p in study.prompts()}
    images = torch.stack([to_pixels(study.image(s)) for s in samples])
    check_reward(load_reward(study, run), images, [texts[s.prompt_id] for s in samples])
