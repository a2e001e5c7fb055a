"""Which images of a study are rated or compared, by people in the app or simulated raters."""

from collections.abc import Sequence

from sayso.base.errors import UserError, quoted
from sayso.base.types import Prompt, Sample
from sayso.study.study import Study


def images_to_rate(
    study: Study, model: str, prompts: Sequence[Prompt], which: str, per_prompt: int
) -> list[tuple[Prompt, list[Sample]]]:
    """Prompts with their first `per_prompt` images of a model, 0 = all; those without are left out.

    Raises: UserError: if there are no images; `which` prompts these are is for the message.
    """
    images = _by_prompt(study, model)
    found = [(p, images[p.id][: per_prompt or None]) for p in prompts if p.id in images]
    if not found:
        raise UserError(
            f"there are no images of model {model!r} for {which} prompts; generate some with: "
            f"sayso generate {quoted(study.path)} --model {quoted(model)}"
        )
    return found


def sets_to_compare(
    study: Study, models: tuple[str, str], prompts: Sequence[Prompt], which: str, size: int
) -> list[tuple[Prompt, tuple[tuple[Sample, ...], tuple[Sample, ...]]]]:
    """Each prompt with the first `size` images of either model.

    Raises: UserError: if there are no prompts, or a model has too few images for one.
    """
    if not prompts:
        raise UserError(f"{study.path} has no {which} prompts to compare on")
    left, right = (_by_prompt(study, model) for model in models)
    return [
        (p, (_set(study, models[0], p, left, size), _set(study, models[1], p, right, size)))
        for p in prompts
    ]


def _by_prompt(study: Study, model: str) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in study.samples(model):
        found.setdefault(sample.prompt_id, []).append(sample)
    return found


def _set(
    study: Study, model: str, prompt: Prompt, images: dict[str, list[Sample]], size: int
) -> tuple[Sample, ...]:
    found = images.get(prompt.id, [])
    if len(found) < size:
        raise UserError(
            f"model {model!r} has {len(found)} images for {prompt.text!r}, but a set needs {size}; "
            f"generate more with: sayso generate {quoted(study.path)} --model {quoted(model)} "
            f"--per-prompt {size}"
        )
    return tuple(found[:size])
