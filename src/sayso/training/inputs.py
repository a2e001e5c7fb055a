"""What a run of align learns from: gathered, frozen when the run begins, and read again."""

import math
from typing import Any, NamedTuple

from sayso.aligners import Aligner
from sayso.base.errors import UserError
from sayso.base.files import JsonObject
from sayso.base.types import Sample
from sayso.data.latents import SampleLatents
from sayso.data.pairs import Pair, pairs_of
from sayso.data.pretraining_images import open_pretraining
from sayso.study.inputs import samples_by_id, source_of_plugin
from sayso.study.run import Run
from sayso.study.study import Study
from sayso.training.needs import check_needs
from sayso.training.options import RATERS, AlignConfig
from sayso.training.sources import source_of_model, source_of_reward


class Samples(NamedTuple):
    """The model's images for "train" prompts, their texts, and what the votes on them come to."""

    samples: list[Sample]
    texts: list[str]
    labels: list[float]


def own_images(study: Study, config: AlignConfig) -> Samples:
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
    labels = _labels(study, samples, config)
    return Samples(samples, [texts[s.prompt_id] for s in samples], labels)


def _labels(study: Study, samples: list[Sample], config: AlignConfig) -> list[float]:
    """The label of each image, NaN if nobody rated it."""
    simulated, ids = _kind(study, config) == "simulated", {s.id for s in samples}
    method: Any = "share" if config.labels == "auto" else config.labels
    labels = study.feedback.soft_labels(simulated, method=method, among=ids)
    return [labels.get(s.id, float("nan")) for s in samples]


def _kind(study: Study, config: AlignConfig) -> str:
    """Whose marks count: people's, if any person rated and nothing else is asked for."""
    if config.raters != "auto":
        return config.raters
    return RATERS[study.feedback.kind_in_use()]


def gather(study: Study, config: AlignConfig, aligner: Aligner) -> JsonObject:
    """What the run will learn from: samples, their texts and labels, and whose labels these are.

    `sources` identifies what else decides the result: models, reward, pre-training
    images, plug-ins.
    """
    images = own_images(study, config) if learns_from_images(aligner) else Samples([], [], [])
    pairs = _pairs(study, config, aligner, images)
    check_needs(study, config, aligner, images.labels, len(pairs))
    latents = SampleLatents(study, images.samples).digests() if images.samples else []
    rows = zip(images.samples, images.texts, images.labels, latents, strict=True)
    found: JsonObject = {
        "labels": config.labels,
        "raters": _kind(study, config),
        "images": [
            {
                "id": s.id,
                "text": text,
                "label": None if math.isnan(label) else label,
                "latents": own,
            }
            for s, text, label, own in rows
        ],
        "sources": sources(study, config, aligner),
    }
    if "pairs" in aligner.required():
        found["pairs"] = pairs
    if "rollouts" in aligner.required():
        found["prompts"] = [prompt.text for prompt in study.prompts("train")]
    return found


def learns_from_images(aligner: Aligner) -> bool:
    """Whether it learns from the samples that are there, or draws all images itself."""
    needs = aligner.required()
    return bool(needs & {"data", "pairs"}) or "rollouts" not in needs


def _pairs(study: Study, config: AlignConfig, aligner: Aligner, images: Samples) -> list[Pair]:
    if "pairs" not in aligner.required():
        return []
    ids = [sample.id for sample in images.samples]
    labels = dict(zip(ids, images.labels, strict=True))
    known = {name: label for name, label in labels.items() if not math.isnan(label)}
    return pairs_of(study, images.samples, known, _kind(study, config) == "simulated")


def sources(study: Study, config: AlignConfig, aligner: Aligner) -> dict[str, str]:
    """Name → identity of all that training depends on beside images and labels."""
    found = {"seed": str(seed_of(study, config)), **source_of_plugin("aligner", config.aligner)}
    found |= source_of_model(study, config.model)
    if "reward" in aligner.required():
        found |= source_of_reward(study, config.reward)
    if uses_pretraining(config, aligner):
        images = open_pretraining(study).train_identity(config.pretraining_images)
        found["pre-training images"] = images
    return found


def uses_pretraining(config: AlignConfig, aligner: Aligner) -> bool:
    return config.uses_pretraining or "pretraining" in aligner.required()


def scores_samples(aligner: Aligner) -> bool:
    """Whether the reward of the samples is needed before training, not that of images to come."""
    needs = aligner.required()
    return "reward" in needs and "rollouts" not in needs


def seed_of(study: Study, config: AlignConfig) -> int:
    return study.info.seed if config.seed is None else config.seed


def frozen(study: Study, run: Run) -> Samples:
    """The images as they were when the run was begun."""
    rows = (run.inputs or {})["images"]
    samples = samples_by_id(study, [row["id"] for row in rows], run.name)
    # runs that older versions began call the label "mark"
    labels = [row["label"] if "label" in row else row["mark"] for row in rows]
    known = [float("nan") if label is None else label for label in labels]
    return Samples(samples, [row["text"] for row in rows], known)
