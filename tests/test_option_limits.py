"""Numbers that cannot work are refused when they are given, and nothing is left behind."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from sayso.base.errors import SEED_END, UserError, check_seed
from sayso.cli import commands as cli
from sayso.stages.align import AlignConfig
from sayso.stages.align import plan as align_plan
from sayso.stages.generate import GenerateConfig, generate
from sayso.stages.generate import plan as generate_plan
from sayso.stages.new import NewConfig, new
from sayso.stages.prompts import PromptsConfig, write_prompts
from sayso.stages.rate import RateConfig
from sayso.stages.rate import plan as rate_plan
from sayso.study.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = new(tmp_path / "study", NewConfig(num_inference_steps=2))
    write_prompts(made, PromptsConfig(train=8, test=4, fidelity=0))
    return made


@pytest.mark.parametrize("seed", [-1, SEED_END, 2**64, -(2**70)])
def test_a_seed_that_would_fail_later(tmp_path: Path, study: Study, seed: int):
    where, says = tmp_path / "other", f"seed {seed} is not allowed; give 0 to 9223372036854775807"
    for refuse in (
        lambda: new(where, NewConfig(seed=seed)),
        lambda: write_prompts(Study.open(study.path), PromptsConfig(seed=seed)),
        lambda: rate_plan(study, RateConfig(seed=seed)),
        lambda: align_plan(study, AlignConfig(seed=seed)),
        lambda: cli.run(["demo", str(where), f"--seed={seed}"]),
    ):
        with pytest.raises(UserError, match=says):
            refuse()
    assert not where.exists()


def test_the_largest_seed_goes_all_the_way(tmp_path: Path):
    check_seed(SEED_END - 1)
    study = new(tmp_path / "study", NewConfig(seed=SEED_END - 1))
    write_prompts(study, PromptsConfig(train=8, test=4, fidelity=4))
    assert len(study.prompts("fidelity")) == 4
    assert Study.open(study.path).info.seed == SEED_END - 1


LIMITS: dict[str, Callable[[Study], object]] = {
    "num_inference_steps -1": lambda s: GenerateConfig(num_inference_steps=-1).sampler(s),
    "guidance_scale -1.0": lambda s: GenerateConfig(guidance_scale=-1.0).sampler(s),
    "guidance_scale nan": lambda s: GenerateConfig(guidance_scale=float("nan")).sampler(s),
    "guidance_scale inf": lambda s: GenerateConfig(guidance_scale=float("inf")).sampler(s),
    "eta 1.5": lambda s: GenerateConfig(eta=1.5).sampler(s),
    "image_size 32768x64": lambda s: GenerateConfig(image_size="32768x64").sampler(s),
    "image_size 63x63": lambda s: GenerateConfig(image_size="63").sampler(s),
    "shared_overlap -1": lambda s: rate_plan(s, RateConfig(shared_overlap=-1)),
    "checkpoint_every 0": lambda s: align_plan(s, AlignConfig(checkpoint_every=0)),
    "batch_size 0": lambda s: align_plan(s, AlignConfig(batch_size=0)),
    "fidelity -1": lambda s: write_prompts(new(s.path / "n"), PromptsConfig(fidelity=-1)),
}


@pytest.mark.parametrize("says", LIMITS)
def test_numbers_out_of_range(study: Study, says: str):
    with pytest.raises(UserError, match=rf"{says} is (not allowed|too small|too large); give"):
        LIMITS[says](study)


def test_every_count_of_the_command_line_has_an_upper_limit(study: Study):
    """A typo of many zeros ends in one line, before anything is made."""
    tried = []
    for name, command in cli.COMMANDS.items():
        config = getattr(importlib.import_module(command.module), command.config)
        kinds = get_type_hints(config)
        counts = [n for n, kind in kinds.items() if int in (kind, *get_args(kind))]
        for count in (n for n in counts if n not in ("seed", "port")):
            flag = f"--{count.replace('_', '-')}={10**9}"
            where = str(study.path.with_name("n") if name in cli.FOLDER_COMMANDS else study.path)
            with pytest.raises(UserError, match=f"{count} {10**9} is too large; give"):
                cli.run([name, where, flag])
            tried.append(count)
    assert len(tried) > 25
    assert not study.runs("generate")
    assert not study.path.with_name("n").exists()


def test_more_images_than_a_study_holds(study: Study):
    for config in (
        GenerateConfig(per_prompt=10**9),
        GenerateConfig(per_prompt=1, best_of=10**9, reward="clip_score"),
    ):
        with pytest.raises(UserError, match=r"1000000000 images for each of 8 prompts .* 1250000"):
            generate(study, config)
        with pytest.raises(UserError, match="more than a study may hold"):
            generate_plan(study, config)
    assert not study.runs("generate")
