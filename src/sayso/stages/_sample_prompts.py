"""Which prompts the sample grids of a run of `align` show."""

from sayso.base.contact_sheet import spaced
from sayso.base.files import JsonObject
from sayso.stages._drawing_plan import seed_of
from sayso.study.study import Study
from sayso.training.options import TrainOptions

OF_THE_RUN = 8
"""How many of the prompts that are trained on a grid shows."""


def sample_prompts(
    study: Study, options: TrainOptions, inputs: JsonObject
) -> list[tuple[str, int]]:
    """The prompts, each with the seed of its first image in the study; none without grids.

    Args:
        inputs: what the run learns from.
    """
    if not options.sample_every:
        return []
    ids = {prompt.text: prompt.id for prompt in study.prompts()}
    trained_on = inputs.get("prompts") or [row["text"] for row in inputs["images"]]
    texts = options.prompts_of_grids() or spaced([*dict.fromkeys(trained_on)], OF_THE_RUN)
    return [(text, seed_of(study, ids.get(text, text), 0)) for text in texts]
