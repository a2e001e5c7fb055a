"""Stage `align`: fine-tune the model on what people, or the reward learned from them, like."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sayso.devices import (
    MixedPrecision,
    enough_memory,
    is_main_process,
    main_process_first,
    make_accelerator,
)
from sayso.errors import UserError
from sayso.progress import console
from sayso.run import Run
from sayso.study import Study
from sayso.train_options import TrainOptions
from sayso.types import Sample
from sayso.votes.labels import LabelMethod, check_method

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sayso.aligner import Aligner
    from sayso.policy import Policy
    from sayso.training_data import TrainingRows


@dataclass(frozen=True)
class AlignConfig(TrainOptions):
    """Options of `sayso align`; the aligner's own come with it."""

    aligner: str = "rwr"
    """The algorithm: a file of aligners/, or your own, such as ./mine.py."""
    name: str = ""
    """Name of the run; default: the aligner's."""
    reward: str = "runs/fit-clip_head"
    """What to maximise: a run of fit, or a reward that needs no training such as clip_score."""
    model: str = "base"
    """The model to start from, whose images are trained on: base, or an earlier align run."""
    labels: LabelMethod = "share"
    """What several raters' marks of an image come to: share, majority or dawid-skene; see
    sayso fit --help."""
    lora_rank: int = 0
    """Rank of low-rank adapters to train in place of the whole network; 0 = the whole network, as
    in the paper."""
    pretraining_images: int = 1024
    """How many pre-training images to use, at most; the paper's 625,000."""
    seed: int | None = None
    """Seed of the training; default: the study's."""
    mixed_precision: MixedPrecision = "auto"
    """Number format of the network's arithmetic; auto = bf16 where the machine has it."""

    def check(self) -> None:
        super().check()
        check_method(self.labels)
        for name, least in {"lora_rank": 0, "pretraining_images": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} {getattr(self, name)} is too small; give {least} or more")


def plan(study: Study, config: AlignConfig) -> dict[str, object]:
    """What would be done: rows, images a step, passes over the data."""
    own = len(_own_images(study, config).samples)
    seen = config.max_steps * config.batch_size
    return {
        "own images": own,
        "images a step": config.batch_size,
        "images in all": seen,
        "passes over the own images, about": round(seen / own, 1),
        "checkpoints": (config.max_steps - 1) // config.checkpoint_every,
    }


def align(study: Study, config: AlignConfig, aligner: "Aligner | None" = None) -> Run:
    """Fine-tune `config.model` and write the tuned weights to `runs/align-<name>/weights`.

    Args:
        study: its samples of the model on "train" prompts are the data.
        config: how to train.
        aligner: the algorithm with its options; None = the one `config.aligner` names, with its
            defaults.
    Raises: UserError: if data, reward or pre-training images that the aligner needs are missing,
        if a reward, loss or gradient is not finite, or an option is out of range.
    """
    from sayso.aligner import load_aligner

    config.check()
    aligner = aligner or load_aligner(config.aligner)()
    images = _own_images(study, config)
    _check_needs(study, config, aligner, images.marks)
    name = config.name or config.aligner.removesuffix(".py").rsplit("/", 1)[-1]
    with main_process_first():
        run = study.run("align", name, config, aligner, main=is_main_process())
    if run.finished:
        console.print(f"{run.name} is finished")
        return run
    _train(study, config, aligner, run, images)
    return run


def _train(
    study: Study, config: AlignConfig, aligner: "Aligner", run: Run, images: "_OwnImages"
) -> None:
    from sayso.aligner import Context
    from sayso.models import load_policy
    from sayso.train import train

    accelerator = make_accelerator(config.mixed_precision)
    seed = study.info.seed if config.seed is None else config.seed
    with accelerator.local_main_process_first():
        rewards = _rewards(study, config, aligner, images, accelerator)
        policy = load_policy(study, config.model, accelerator.device)
        rows = _rows(study, config, aligner, policy, accelerator, images, rewards)
    _note_environment(study, config, aligner, run, accelerator)
    if config.lora_rank:
        policy.add_lora(config.lora_rank, seed)
    context = Context(rows, config.batch_size, config.max_steps, seed)
    with enough_memory("--micro-batch-size", config.micro_batch(accelerator.num_processes)):
        result = train(policy, aligner, context, config, run, accelerator)
    if accelerator.is_main_process:
        run.finish(result | _facts(rows, policy))


def _note_environment(
    study: Study, config: AlignConfig, aligner: "Aligner", run: Run, accelerator: "Accelerator"
) -> None:
    from sayso.models import model_folders
    from sayso.provenance import computed_on, loaded
    from sayso.reward import reward_folders

    if accelerator.is_main_process:
        rewards = reward_folders(study, config.reward) if "reward" in aligner.required() else []
        folders = [*model_folders(study, config.model), *rewards]
        run.add_environment({**computed_on(accelerator), "loaded": loaded(folders)})


class _OwnImages(NamedTuple):
    """The model's images for "train" prompts, their texts, and people's marks."""

    samples: list[Sample]
    texts: list[str]
    marks: list[float]


def _own_images(study: Study, config: AlignConfig) -> _OwnImages:
    model = config.model
    texts = {prompt.id: prompt.text for prompt in study.prompts("train")}
    samples = [s for s in study.samples(model) if s.prompt_id in texts]
    if not samples:
        raise UserError(
            f"there are no images of {model!r} for train prompts; make some with: "
            f"sayso generate {study.path} --model {model}"
        )
    imported = sum(not sample.latents for sample in samples)
    if imported:
        raise UserError(
            f"{imported} images of {model!r} were imported and have no stored latents, which align "
            "trains on; they can only train a reward: choose a --model whose images sayso generate "
            "drew here"
        )
    marks = _marks(study, samples, config.labels)
    return _OwnImages(samples, [texts[s.prompt_id] for s in samples], marks)


def _marks(study: Study, samples: list[Sample], method: LabelMethod) -> list[float]:
    """The label of each image, NaN if nobody marked it; of people, if any person rated."""
    store, ids = study.feedback, {s.id for s in samples}
    labels = store.soft_labels(store.kind_in_use(), method=method, among=ids)
    return [labels.get(s.id, float("nan")) for s in samples]


def _check_needs(study: Study, config: AlignConfig, aligner: "Aligner", marks: list[float]) -> None:
    """Compare what the aligner needs with what is there, before any model loads."""
    needs, name = aligner.required(), type(aligner).__name__
    if "data" in needs:
        for word, count in {
            "good": sum(m > 0.5 for m in marks),
            "bad": sum(m < 0.5 for m in marks),
        }.items():
            if not count:
                raise UserError(
                    f"aligner {name} needs ratings of both kinds, and no image of {config.model!r} "
                    f"is rated {word}; rate more images: sayso rate {study.path}"
                )
    if "reward" in needs and config.reward.startswith("runs/"):
        _ = study.find_run(config.reward).result
    if "pretraining" in needs and not study.info.pretraining:
        raise UserError(
            f"aligner {name} needs pre-training images and the study names none; give "
            "--pretraining-weight 0, or make the study with --pretraining FOLDER"
        )


def _rewards(
    study: Study,
    config: AlignConfig,
    aligner: "Aligner",
    images: _OwnImages,
    accelerator: "Accelerator",
) -> list[float]:
    """The reward of every own image; NaN if the aligner needs none."""
    if "reward" not in aligner.required():
        return [float("nan")] * len(images.samples)
    from sayso.reward import load_reward

    reward = load_reward(study, config.reward, accelerator.device)
    return reward.score_samples(study, images.samples, images.texts).tolist()


def _rows(
    study: Study,
    config: AlignConfig,
    aligner: "Aligner",
    policy: "Policy",
    accelerator: "Accelerator",
    images: _OwnImages,
    rewards: list[float],
) -> "TrainingRows":
    """The table of training rows; pre-training images only if the aligner needs them."""
    from sayso.training_data import load_latents, make_rows, pretraining_rows

    policy.check_prompts(list(dict.fromkeys(images.texts)))
    natural = None
    if "pretraining" in aligner.required():
        natural = pretraining_rows(study, policy, config.pretraining_images, accelerator.autocast())
        cut = sum(map(policy.is_cut, natural[1]))
        if cut:
            console.print(
                f"{cut} of {len(natural[1])} captions of pre-training images are longer than the "
                "model reads, and are cut"
            )
    own = (load_latents(study, images.samples), images.texts)
    return make_rows(policy, own, images.marks, rewards, natural)


def _facts(rows: "TrainingRows", policy: "Policy") -> dict[str, int]:
    """What the training had to do with, for result.json."""
    mark = rows.mark[: rows.n_own]
    return {
        "own_images": rows.n_own,
        "rated_images": int(mark.isfinite().sum()),
        "good_images": int((mark > 0.5).sum()),
        "pretraining_images": len(rows.pretraining),
        "trainable_weights": sum(p.numel() for p in policy.trainable().values()),
    }
