"""What all cells of a seed share: a study with images, ratings, rewards, and the base's tests."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sayso.base.errors import UserError, quoted
from sayso.base.progress import console
from sayso.base.types import Prompt, Sample, digest
from sayso.cli.league.config import Size
from sayso.study.identity import base_identity, reward_identity
from sayso.study.info import PromptChoice
from sayso.study.study import Study

REWARD, HELD_OUT = "runs/fit-clip_head", "runs/fit-validation"
"""The reward that cells are trained with, and the one that chooses among their options."""
HELD_OUT_FORM = "--hidden-width 512 --prompt-classification-weight 0"
"""The latter is another network, which learns from the same ratings without altered prompts."""


def run_line(line: str) -> Any:
    """Run a command line as a user would type it, and show it."""
    from sayso.cli import commands as cli

    console.print(f"[bold]$ sayso {line}[/bold]", highlight=False, soft_wrap=True)
    return cli.run(shlex.split(line))


@dataclass(frozen=True)
class Ground:
    """A seed's study, ready for any cell.

    `identity` changes with everything that cells use of it: the base, its ratings, both rewards.
    `per_image` is what the network is asked for an image.
    """

    study: Study
    size: Size
    seed: int
    identity: str
    per_image: int

    @property
    def where(self) -> str:
        """The study's path as a command line has it."""
        return quoted(self.study.path)

    def prompts(self, which: PromptChoice) -> dict[str, Prompt]:
        return {prompt.id: prompt for prompt in self.study.prompts(which)}

    def images(self, model: str, which: PromptChoice) -> list[Sample]:
        """The model's images for those prompts, in the prompts' order."""
        prompts = self.prompts(which)
        found = [s for s in self.study.samples(model) if s.prompt_id in prompts]
        order = {prompt: i for i, prompt in enumerate(prompts)}
        return sorted(found, key=lambda s: order[s.prompt_id])


def preparation(where: str, size: Size, seed: int) -> list[str]:
    """The command lines that make a seed's study, without the leading "sayso"."""
    lines = [
        f"new {where} --seed {seed}",
        f"prompts {where} --train {size.train} --validation {size.validation} --test {size.test} "
        f"--fidelity {size.fidelity}",
        f"generate {where} --prompts train --per-prompt {size.train_images}",
        f"rate {where} --simulated --prompts train",
        f"fit {where} {size.fit}",
        f"fit {where} {size.fit} {HELD_OUT_FORM} --name validation",
        f"generate {where} --prompts validation --per-prompt {size.validation_images}",
        f"generate {where} --prompts test --per-prompt {size.pool}",
        f"generate {where} --prompts test --per-prompt {size.set_size} --best-of {size.pool} "
        f"--reward {REWARD}",
    ]
    if size.fidelity:
        lines.append(f"generate {where} --prompts fidelity --per-prompt 1")
    return lines


def prepare(folder: Path, size: Size, seed: int, run: Callable[[str], Any] = run_line) -> Ground:
    """Make the study of a seed in `folder`, or go on with it.

    Raises: UserError: if a study is there that was made otherwise.
    """
    for line in preparation(quoted(folder), size, seed):
        if line.startswith("new ") and (folder / "study.json").exists():
            continue
        run(line)
    study = Study.open(folder)
    if study.info.seed != seed:
        raise UserError(f"{folder} is a study of seed {study.info.seed}, not {seed}; delete it")
    return Ground(study, size, seed, _identity(study), _per_image(study))


def _identity(study: Study) -> str:
    drawn = {sample.id for sample in study.samples("base")}
    ratings = sorted(
        [r.sample_id, r.rater, r.value] for r in study.feedback.ratings() if r.sample_id in drawn
    )
    rewards = [reward_identity(study, name) for name in (REWARD, HELD_OUT)]
    prompts = [prompt.id for prompt in study.prompts()]
    return digest([base_identity(study), ratings, rewards, prompts, study.info.seed])


def _per_image(study: Study) -> int:
    from sayso.families._loading import evaluations

    found = evaluations(study, study.info.sampler)
    assert found is not None
    return found
