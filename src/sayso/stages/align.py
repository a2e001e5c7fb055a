"""Stage `align`: fine-tune the model on what people, or the reward learned from them, like."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sayso.base.devices import (
    enough_memory,
    is_main_process,
    main_process_first,
    make_accelerator,
)
from sayso.base.errors import UserError
from sayso.base.plugins import is_plugin
from sayso.base.progress import console
from sayso.study.generations import say
from sayso.study.identity import base_identity, canonical_config, weights_identity
from sayso.study.inputs import fitted_to, refuse_changed, refuse_other_latents
from sayso.study.run import Run
from sayso.study.study import Study
from sayso.training.options import AlignConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sayso.aligners import Aligner, Work
    from sayso.data.conditions import Conditions
    from sayso.data.rows import TrainingRows
    from sayso.families import Policy
    from sayso.training.inputs import Samples

__all__ = ["AlignConfig", "align", "plan"]

CAPTIONS_AT_ONCE = 1024


def plan(study: Study, config: AlignConfig) -> dict[str, object]:
    """What would be done: rows, images a step, passes over the data."""
    from sayso.aligners import load_aligner
    from sayso.training.inputs import learns_from_images, own_images

    config.check()
    aligner = load_aligner(config.aligner)()
    config = canonical_config(study, config).for_aligner(aligner.defaults)
    seen = config.max_steps * config.batch_size
    sizes: dict[str, object] = {}
    if learns_from_images(aligner):
        own = len(own_images(study, config).samples)
        sizes = {"own images": own, "passes over the own images, about": round(seen / own, 1)}
    return {
        "learning_rate": config.learning_rate,
        "pretraining_weight": config.pretraining_weight,
        "images a step": config.batch_size,
        "images in all": seen,
        **sizes,
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
    from sayso.aligners import load_aligner
    from sayso.training.inputs import gather, sources
    from sayso.training.needs import check_options

    config.check()
    config = canonical_config(study, config)
    aligner = aligner or load_aligner(config.aligner)()
    config = config.for_aligner(aligner.defaults)
    check_options(config, aligner)
    say(study, [config.model])
    name = config.name or config.aligner.removesuffix(".py").rsplit("/", 1)[-1]
    begun = study.begun("align", name)
    config = _with_labels(study, config, aligner, begun)
    inputs = begun and (begun.finished or begun.inputs)
    gathered = None if inputs else gather(study, config, aligner)
    with main_process_first():
        run = study.run("align", name, config, aligner, inputs=gathered, main=is_main_process())
    with run:
        if run.finished:
            console.print(f"{run.name} is finished")
        else:
            refuse_changed(run, sources(study, config, aligner))
            _train(study, config, aligner, run)
    return run


def _with_labels(
    study: Study, config: AlignConfig, aligner: "Aligner", begun: Run | None
) -> AlignConfig:
    """`config` with the labels and raters of the run that is there, or else of the reward."""
    if begun is not None:
        known = begun.config
    elif "reward" not in aligner.required() or is_plugin("reward", config.reward):
        known = {}
    elif known := fitted_to(study, config.reward):
        told = (
            config.labels in ("auto", known["labels"]),
            config.raters in ("auto", known["raters"]),
        )
        verb = "takes" if all(told) else "leaves"
        console.print(
            f"align {verb} what {config.reward} was fitted to: labels {known['labels']}, "
            f"raters {known['raters']}"
        )
    labels = known.get("labels", "share") if config.labels == "auto" else config.labels
    raters = known.get("raters", "auto") if config.raters == "auto" else config.raters
    return replace(config, labels=labels, raters=raters)


def _train(study: Study, config: AlignConfig, aligner: "Aligner", run: Run) -> None:
    from sayso.families._loading import load_policy
    from sayso.training.inputs import frozen, seed_of
    from sayso.training.loop import train

    accelerator = make_accelerator(config.mixed_precision)
    images = frozen(study, run)
    with accelerator.local_main_process_first():
        rewards = _frozen_rewards(study, config, aligner, images, run, accelerator)
        policy = load_policy(study, config.model, accelerator.device)
        rows = _rows(study, config, aligner, policy, accelerator, images, rewards, run)
    _note_environment(study, config, aligner, run, accelerator)
    if config.lora_rank:
        policy.add_lora(config.lora_rank, seed_of(study, config))
    work = _work(study, config, aligner, policy, rows, images, run)
    with enough_memory("--micro-batch-size", config.micro_batch(accelerator.num_processes)):
        result = train(work, aligner, config, run, accelerator)
    if accelerator.is_main_process:
        identity = {"identity": weights_identity(study, run)}
        run.finish(result | _facts(work) | identity)


def _work(
    study: Study,
    config: AlignConfig,
    aligner: "Aligner",
    policy: "Policy",
    rows: "TrainingRows",
    images: "Samples",
    run: Run,
) -> "Work":
    """What the aligner works with: only what it needs."""
    from sayso.aligners import Work
    from sayso.data.pairs import Pair, pair_rows
    from sayso.rewards import load_reward
    from sayso.training.inputs import seed_of

    needs, inputs = aligner.required(), run.inputs or {}
    ids = [sample.id for sample in images.samples]
    pairs = [Pair(*row) for row in inputs.get("pairs", [])]
    in_loop = "reward" in needs and needs & {"rollouts", "gradient"}
    return Work(
        policy,
        rows,
        config.batch_size,
        config.max_steps,
        seed_of(study, config),
        pairs=pair_rows(pairs, ids, images.texts) if "pairs" in needs else None,
        prompts=tuple(inputs.get("prompts", ())),
        reward=load_reward(study, config.reward, policy.device) if in_loop else None,
        sampler=study.info.sampler,
    )


def _note_environment(
    study: Study, config: AlignConfig, aligner: "Aligner", run: Run, accelerator: "Accelerator"
) -> None:
    from sayso.families._loading import model_folders
    from sayso.rewards import reward_folders
    from sayso.study.provenance import computed_on, loaded

    if accelerator.is_main_process:
        rewards = reward_folders(study, config.reward) if "reward" in aligner.required() else []
        folders = [*model_folders(study, config.model), *rewards]
        run.add_environment({**computed_on(accelerator), "loaded": loaded(folders)})


def _frozen_rewards(
    study: Study,
    config: AlignConfig,
    aligner: "Aligner",
    images: "Samples",
    run: Run,
    accelerator: "Accelerator",
) -> list[float]:
    """The rewards as they were computed when the run was begun, however caches fare since."""
    from sayso.training.inputs import scores_samples

    inputs = run.inputs or {}
    if not scores_samples(aligner) or "rewards" not in inputs:
        rewards = _rewards(study, config, aligner, images, accelerator)
        if scores_samples(aligner) and accelerator.is_main_process:
            run.freeze({**inputs, "rewards": rewards})
        return rewards
    return inputs["rewards"]


def _rewards(
    study: Study,
    config: AlignConfig,
    aligner: "Aligner",
    images: "Samples",
    accelerator: "Accelerator",
) -> list[float]:
    """The reward of every sample; NaN if the aligner needs none."""
    from sayso.rewards import load_reward
    from sayso.training.inputs import scores_samples

    if not scores_samples(aligner):
        return [float("nan")] * len(images.samples)

    reward = load_reward(study, config.reward, accelerator.device)
    return reward.score_samples(study, images.samples, images.texts).tolist()


def _rows(
    study: Study,
    config: AlignConfig,
    aligner: "Aligner",
    policy: "Policy",
    accelerator: "Accelerator",
    images: "Samples",
    rewards: list[float],
    run: Run,
) -> "TrainingRows":
    """The table of training rows; pre-training images only if the aligner needs them."""
    import torch

    from sayso.data.conditions import open_conditions
    from sayso.data.latents import SampleLatents, encoded_pretraining
    from sayso.data.rows import make_rows
    from sayso.training.inputs import uses_pretraining

    prompts = (run.inputs or {}).get("prompts", [])
    policy.check_prompts(list(dict.fromkeys([*images.texts, *prompts])))
    more = None
    if uses_pretraining(config, aligner):
        n = config.pretraining_images
        more = encoded_pretraining(study, policy, n, accelerator.autocast())
        _say_cut(policy, more[1])
    latents = torch.zeros(0, *policy.latent_shape(study.info.sampler.image_size_px))
    if images.samples:
        latents = SampleLatents(study, images.samples)
        refuse_other_latents(study, run, images.samples, latents.digests())

    def conditions(policy: "Policy", texts: Sequence[str]) -> "Conditions":
        folder, identity = study.cache / "conditions", base_identity(study)
        return open_conditions(policy, texts, folder, identity, config.conditions)

    return make_rows(policy, (latents, images.texts), images.labels, rewards, more, conditions)


def _say_cut(policy: "Policy", captions: list[str]) -> None:
    """Say how many captions of pre-training images are longer than the model reads."""
    cut = 0
    for i in range(0, len(captions), CAPTIONS_AT_ONCE):
        part = captions[i : i + CAPTIONS_AT_ONCE]
        try:
            policy.check_prompts(part)
        except UserError:
            cut += sum(map(policy.is_cut, part))
    if cut:
        console.print(
            f"{cut} of {len(captions)} captions of pre-training images are longer than the model "
            "reads, and are cut"
        )


def _facts(work: "Work") -> dict[str, int]:
    """What the training had to do with, for result.json."""
    rows = work.data
    label = rows.label[: rows.n_own]
    pairs = {} if work.pairs is None else {"pairs": len(work.pairs)}
    return {
        "own_images": rows.n_own,
        "rated_images": int(label.isfinite().sum()),
        "good_images": int((label > 0.5).sum()),
        "pretraining_images": len(rows.pretraining),
        **pairs,
        "trainable_weights": sum(p.numel() for p in work.policy.trainable().values()),
    }
