"""The images that `generate` has to draw: all of a plan, and those missing, in whole batches."""

from collections.abc import Sequence
from dataclasses import replace

from sayso.base.errors import UserError
from sayso.base.types import Prompt, Sample, Sampler, digest, sample_id
from sayso.prompts.grammar import images_per_prompt
from sayso.study.info import PromptChoice
from sayso.study.study import Study

MOST_IMAGES = 10_000_000
"""Of one plan; the records of more would not fit the memory."""
Drawing = tuple[Prompt, Sample]
"""One image to draw: its prompt and the record it will have."""


def planned(
    study: Study, choice: PromptChoice, per_prompt: int, model: str, identity: str, sampler: Sampler
) -> list[Drawing]:
    """The whole plan: prompts in file order, seeds that are the same for every model.

    Args:
        choice: which prompts of the study.
        per_prompt: images for each; 0 = the number that the set of prompts says.
        model, identity: of what draws, its canonical name and the identity of its weights.
    Raises: UserError: if there are no such prompts, or more images than a study holds.
    """
    prompts = study.prompts(choice)
    if not prompts:
        raise UserError(f"{study.path} has no {choice!r} prompts; choose other --prompts")
    numbers = {} if per_prompt else _numbers_of_the_set(study, prompts)
    if per_prompt * len(prompts) > MOST_IMAGES:
        raise UserError(
            f"{per_prompt} images for each of {len(prompts)} prompts are more than a study may "
            f"hold; give --per-prompt or --best-of {MOST_IMAGES // len(prompts)} or less"
        )
    return [
        (prompt, _record(study, prompt, model, seed, sampler, identity))
        for prompt in prompts
        for seed in _seeds(study, prompt, per_prompt or numbers[prompt.category])
    ]


def _numbers_of_the_set(study: Study, prompts: Sequence[Prompt]) -> dict[str, int]:
    """Images per prompt by category, as the set of the study's prompts says."""
    name = study.find_run("prompts").config["set"]
    return {p.category: images_per_prompt(name, p.category) for p in prompts}


def _seeds(study: Study, prompt: Prompt, n: int) -> list[int]:
    return [seed_of(study, prompt.id, k) for k in range(n)]


def seed_of(study: Study, prompt_id: str, k: int) -> int:
    """The seed of a prompt's k-th image."""
    return int(digest([study.info.seed, prompt_id, k]), 16) % 2**31


def _record(
    study: Study, prompt: Prompt, model: str, seed: int, sampler: Sampler, identity: str
) -> Sample:
    own_id = sample_id(prompt.id, model, seed, sampler, identity)
    return Sample(own_id, prompt.id, model, seed, sampler, study.image_path(own_id), "", identity)


def place(sample: Sample) -> tuple[str, int, Sampler]:
    """What tells apart the images of one model; ids of older studies lack the model's identity."""
    return sample.prompt_id, sample.seed, sample.sampler


def missing(
    study: Study, drawings: Sequence[Drawing], model: str, batch_size: int
) -> list[list[Drawing]]:
    """The batches of the model's plan, without what is there already.

    A batch that was drawn whole, and whose records were lost in part, is drawn whole again: one
    image's last bits depend on those it is drawn with.
    """
    there = {place(sample): sample.latents for sample in study.samples(model)}
    found = []
    for i in range(0, len(drawings), batch_size):
        batch = _with_shard(study, drawings[i : i + batch_size])
        new = [drawn for drawn in batch if place(drawn[1]) not in there]
        whole = any(there.get(place(sample)) == sample.latents for _, sample in batch)
        if new:
            found.append(batch if whole else _with_shard(study, new))
    return found


def _with_shard(study: Study, batch: Sequence[Drawing]) -> list[Drawing]:
    """The batch, its records naming the file that will hold its latents."""
    shard = study.latents_path(digest([sample.id for _, sample in batch]))
    return [(prompt, replace(sample, latents=shard)) for prompt, sample in batch]
