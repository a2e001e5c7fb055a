"""Whether there is what an aligner needs, asked in the first second: before any model loads."""

from collections.abc import Sequence

from sayso.aligners import Aligner
from sayso.base.errors import UserError, quoted
from sayso.rewards import is_differentiable
from sayso.study.identity import find_reward
from sayso.study.study import Study
from sayso.training.options import TrainOptions


def check_options(options: TrainOptions, aligner: Aligner, processes: int) -> None:
    """Check that the options go together, with each other and with the aligner's.

    Args:
        processes: of the launch.
    Raises: UserError: if they do not.
    """
    check_rows(options, aligner, processes)
    _refuse_idle(options, aligner)
    if options.sharding == "full":
        options.check_shares(aligner.unit, processes)


def _refuse_idle(options: TrainOptions, aligner: Aligner) -> None:
    """Raises: UserError: naming the first option that was given and would change nothing."""
    if options.uses_pretraining:
        return
    for name, idle in {
        "pretraining_draw": ("uniform",),
        "pretraining_fraction": (TrainOptions.pretraining_fraction, 0),
    }.items():
        if (value := getattr(options, name)) not in idle:
            raise UserError(
                f"{name} {value} is about pre-training images, and none are trained on; give "
                "--pretraining-weight too, such as 1, or omit it"
            )
    if options.timestep_sampling != "auto" and not aligner.draws_times:
        raise UserError(
            f"timestep_sampling {options.timestep_sampling} would have no effect, for aligner "
            f"{type(aligner).__name__} learns from steps of drawing, at their own times; omit it"
        )


def check_rows(options: TrainOptions, aligner: Aligner, processes: int) -> None:
    """Check that batches of this size can be shared out and cut as the aligner's rows allow.

    Args:
        processes: of the launch.
    Raises: UserError: if they cannot.
    """
    options.check_unit(aligner.unit, processes, type(aligner).__name__)
    own = options.batch_size - options.n_pretraining(aligner.unit)
    aligner.check_shares(own, options.batch_size, processes)
    aligner.period(own)


def check_needs(
    study: Study,
    options: TrainOptions,
    aligner: Aligner,
    model: str,
    reward: str,
    labels: Sequence[float],
    pairs: int,
) -> None:
    """Compare what the aligner and the loop need with what is there.

    Args:
        options: of the loop, with the aligner's defaults.
        model: canonical names of the models that drew the samples, with commas between.
        reward: its canonical name.
        labels: of the samples, NaN where nobody rated.
        pairs: how many preferences there are.
    Raises: UserError: naming what is missing and how to come by it.
    """
    needs, name = options.needs(aligner.required()), type(aligner).__name__
    rated = {
        "good": "data" not in needs or any(label > 0.5 for label in labels),
        "bad": "bad" not in needs or any(label < 0.5 for label in labels),
    }
    for word, enough in rated.items():
        if not enough:
            raise UserError(
                f"aligner {name} needs images rated {word}, and of those of {model!r} none is; "
                f"rate more images: sayso rate {quoted(study.path)}"
            )
    if "pairs" in needs and not pairs:
        raise UserError(
            f"aligner {name} needs preferences, but no prompt has both a good and a bad image, or "
            f"two images that were compared; rate more images: sayso rate {quoted(study.path)}"
        )
    if "reward" in needs and reward.startswith("runs/"):
        _ = find_reward(study, reward).result
    if "gradient" in needs and not is_differentiable(study, reward):
        raise UserError(
            f"aligner {name} needs the gradient of the reward, but {reward} has none; choose "
            "another --reward, such as a run of fit"
        )
    if "rollouts" in needs and not study.prompts("train"):
        raise UserError(f"aligner {name} generates images, but there are no train prompts")
    if (options.uses_pretraining or "pretraining" in needs) and not study.info.pretraining:
        raise UserError(
            f"aligner {name} needs pre-training images, but the study has none; give "
            "--pretraining-weight 0, or make the study with --pretraining FOLDER"
        )
