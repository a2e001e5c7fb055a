"""Which images of a study are rated or compared, by people in the app or simulated raters."""

from collections.abc import Sequence
from functools import partial

from sayso.base.errors import UserError, quoted
from sayso.base.types import Prompt, Sample
from sayso.study.identity import chosen_from
from sayso.study.study import Study


def images_to_rate(
    study: Study, model: str, prompts: Sequence[Prompt], which: str, per_prompt: int
) -> list[tuple[Prompt, list[Sample]]]:
    """Prompts with their first `per_prompt` images of a model, 0 = all; those without are left out.

    Raises: UserError: if there are no images or no such model; `which` prompts these are is for
        the message.
    """
    images = _by_prompt(study, model)
    found = [(p, images[p.id][: per_prompt or None]) for p in prompts if p.id in images]
    if not found:
        raise UserError(
            f"there are no images of model {model!r} for {which} prompts; generate some with: "
            f"{_command(study, model, which)}"
        )
    return found


def sets_to_compare(
    study: Study, models: tuple[str, str], prompts: Sequence[Prompt], which: str, size: int
) -> list[tuple[Prompt, tuple[tuple[Sample, ...], tuple[Sample, ...]]]]:
    """Each prompt with the first `size` images of either model.

    Raises: UserError: if there are no prompts, or a model is unknown or has too few images for one.
    """
    if not prompts:
        raise UserError(f"{study.path} has no {which} prompts to compare on")
    take = partial(_set, study, which, size)
    left, right = ((model, _by_prompt(study, model)) for model in models)
    return [(p, (take(p, *left), take(p, *right))) for p in prompts]


def _by_prompt(study: Study, model: str) -> dict[str, list[Sample]]:
    """The model's images by prompt. Raises: UserError: if there are none and no such run."""
    found: dict[str, list[Sample]] = {}
    for sample in study.samples(model):
        found.setdefault(sample.prompt_id, []).append(sample)
    drawn = model.partition("@")[0]
    if not found and drawn != "base":
        study.find_run(drawn, "align")
    return found


def _set(
    study: Study, which: str, size: int, prompt: Prompt, model: str, images: dict[str, list[Sample]]
) -> tuple[Sample, ...]:
    found = images.get(prompt.id, [])
    if len(found) < size:
        raise UserError(
            f"model {model!r} has {len(found)} images for {prompt.text!r}, but a set needs {size}; "
            f"generate more with: {_command(study, model, which)} --per-prompt {size}"
        )
    return tuple(found[:size])


def _command(study: Study, model: str, which: str) -> str:
    """What draws images of the model, or selects them, for `which` prompts."""
    drawn, n = chosen_from(model) or (model, 0)
    options = f" --best-of {n} --reward REWARD" if n else ""
    if which != "train":  # for which generate draws by itself
        options += f" --prompts {which}"
    return f"sayso generate {quoted(study.path)} --model {quoted(drawn)}{options}"
