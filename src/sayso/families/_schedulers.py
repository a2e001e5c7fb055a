"""Schedulers of Stable Diffusion folders: which are drawn with, corrected as the pipeline does."""

import copy
import inspect
from pathlib import Path
from typing import Any

import diffusers

from sayso.base.errors import UserError
from sayso.base.types import Sampler
from sayso.base.weights import quiet_libraries, readable
from sayso.families._folder import refuse_few_steps

ACCEPTED = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""Those whose pictures equal diffusers' pipeline's for the same seeds, each tested. Not among them
are those for other models (flow matching, LCM, EDM) and DPMSolverSDEScheduler, whose noise hangs on
the whole batch and not on a picture's seed."""

FEW_STEP = ("LCMScheduler", "TCDScheduler")
"""Schedulers that only few-step models have."""
PREDICTIONS = ("epsilon", "v_prediction")
CORRECTIONS = {"steps_offset": 1, "clip_sample": False}
"""What StableDiffusionPipeline sets right in files from before these fields mattered."""


def load_scheduler(folder: Path, name: str) -> Any:
    """The scheduler of a folder in diffusers' layout, as StableDiffusionPipeline would use it.

    Args:
        folder: the model's folder.
        name: the class that its model_index.json names.
    Raises: UserError: if it is not one of `ACCEPTED`, its file cannot be read, or the model
        predicts something else than `PREDICTIONS` or draws in few steps.
    """
    where = folder / "scheduler"
    if name in FEW_STEP:
        refuse_few_steps(where, f"is a {name}")
    if name not in ACCEPTED:
        raise UserError(
            f"{where} is a {name}, which sayso does not support; name another in "
            f"{folder / 'model_index.json'}, such as DPMSolverMultistepScheduler (allowed are "
            f"{', '.join(ACCEPTED)})"
        )
    kind = getattr(diffusers, name)
    with readable(where, "restore the folder"), quiet_libraries():
        scheduler = kind.from_pretrained(folder, subfolder="scheduler")
        wrong = {k: v for k, v in CORRECTIONS.items() if scheduler.config.get(k, v) != v}
        if wrong:
            scheduler = kind.from_config(scheduler.config, **wrong)
    if _is_turbo(name, scheduler.config):
        refuse_few_steps(where, f"is a {name} with trailing timesteps and without zero SNR")
    predicted = scheduler.config.get("prediction_type", PREDICTIONS[0])
    if predicted not in PREDICTIONS:
        raise UserError(
            f"{where} has prediction_type {predicted!r}; sayso knows {' and '.join(PREDICTIONS)}"
        )
    return scheduler


def _is_turbo(name: str, config: Any) -> bool:
    """Whether the scheduler is what SD-Turbo, SDXL-Turbo and SDXL-Lightning are drawn with.

    Models of zero terminal SNR have the spacing too, and say so.
    """
    euler = name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
    trailing = config.get("timestep_spacing") == "trailing"
    return euler and trailing and not config.get("rescale_betas_zero_snr")


def accepted(step: Any, **offered: Any) -> dict[str, Any]:
    """The keyword arguments that a scheduler's step knows."""
    known = inspect.signature(step).parameters
    return {name: value for name, value in offered.items() if name in known}


def check_scheduler(scheduler: Any, sampler: Sampler) -> None:
    """Raises: UserError: if the scheduler ignores a field of the sampler or cannot do its steps."""
    name = type(scheduler).__name__
    if sampler.eta and not accepted(scheduler.step, eta=sampler.eta):
        raise UserError(
            f"eta {sampler.eta} would have no effect: the model's {name} has no eta; give --eta "
            "0, or name DDIMScheduler in the model's model_index.json"
        )
    try:
        copy.deepcopy(scheduler).set_timesteps(sampler.num_inference_steps)
    except (ValueError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise UserError(
            f"the model's {name} cannot sample in {sampler.num_inference_steps} steps ({error}); "
            "choose another --num-inference-steps"
        ) from None
