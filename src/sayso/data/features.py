"""Fidelity and diversity: how far samples are from pre-training images, on fixed features."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from jaxtyping import Float
from numpy import ndarray
from PIL import Image
from torch import Tensor

from sayso.base.devices import make_accelerator
from sayso.base.errors import UserError, quoted
from sayso.base.finite import refuse_not_finite
from sayso.base.progress import console
from sayso.base.types import Sample, Sampler, Size
from sayso.base.worlds import find_world
from sayso.data.clip import ClipEncoder, stacked
from sayso.data.pretraining_images import Damaged, open_pretraining
from sayso.metrics import quality as metrics
from sayso.study.study import Study

Pictures = Iterable[Image.Image]
Kernel = Literal["kid", "cmmd"]
"""The kernel distance made for CLIP's embeddings is CMMD; for other features KID."""


class FeatureSpace:
    """A name for the reader, the function from pictures to features, and their kernel distance."""

    def __init__(self, name: str, embed: Callable[[Tensor], Tensor], kernel: Kernel) -> None:
        self.name = name
        self.kernel: Kernel = kernel
        self._embed = embed

    def __call__(self, pictures: Pictures) -> Float[ndarray, "n d"]:
        """The features of pictures, float32, all finite."""
        with torch.no_grad():
            found = torch.cat([self._embed(part).cpu().float() for part in stacked(pictures)])
        names = [f"image {i + 1} of {len(found)}" for i in range(len(found))]
        refuse_not_finite(found, names, self.name)
        return found.numpy()


def feature_space(study: Study, device: torch.device) -> FeatureSpace:
    """The features of a world's judge, which no reward uses; else those of the study's CLIP."""
    if world := find_world(study.info.pretraining):
        return FeatureSpace(f"{world.title}'s judge", world.reader(device).features, "kid")
    encoder = ClipEncoder.load(study.info.clip_model, device)
    name = f"CLIP {study.info.clip_model}, which the reward may see too"
    return FeatureSpace(name, encoder.images, "cmmd")


def fidelity(
    study: Study,
    model: str,
    drawn: Mapping[str, Sequence[Sample]],
    sampler: Sampler,
    *,
    leave_out_damaged: bool = False,
) -> dict[str, Any]:
    """Distance to held-out pre-training images of what both models drew for their captions.

    Also of other held-out images, "pretraining": what a perfect model would reach.

    Args:
        model: the tuned model, which is measured against the base.
        drawn: model → its images for the fidelity prompts.
        sampler: the one that drew them all.
        leave_out_damaged: whether to go on without the held-out images that cannot be read.
    Raises: UserError: if a held-out image cannot be read and is not left out.
    """
    prompts = study.prompts("fidelity")
    if not prompts:
        return _skipped(
            "the study has no fidelity prompts; make a study with sayso prompts --fidelity N"
        )
    if not study.info.pretraining:
        return _skipped("the study names no pre-training images")
    by_role = {
        role: {(s.prompt_id, s.seed): s for s in drawn.get(m, [])}
        for role, m in (("base", "base"), ("aligned", model))
    }
    shared = set.intersection(*(set(samples) for samples in by_role.values()))
    if not shared:
        return _skipped(
            f"no images for the fidelity prompts of both base and {model}; generate them with: "
            f"sayso generate {quoted(study.path)} --prompts fidelity --per-prompt 1 --model "
            f"{quoted(model)}"
        )
    order = [key for key in by_role["base"] if key in shared]
    chosen = {role: [samples[key] for key in order] for role, samples in by_role.items()}
    return {
        "sampler": asdict(sampler),
        **_distances(study, chosen, len(prompts), sampler, leave_out_damaged=leave_out_damaged),
    }


def _distances(
    study: Study,
    chosen: Mapping[str, list[Sample]],
    n: int,
    sampler: Sampler,
    *,
    leave_out_damaged: bool,
) -> dict[str, Any]:
    space = feature_space(study, make_accelerator("no").device)
    heldout = _heldout(study, 2 * n, sampler.image_size, leave_out_damaged=leave_out_damaged)
    if not heldout:
        return _skipped("no pre-training image is held out")
    real, more = space(heldout[:n]), heldout[n:]
    found: dict[str, Any] = {"features": space.name, "dimensions": int(real.shape[1])}
    for role, samples in chosen.items():
        found[role] = distances(real, space(study.image(s) for s in samples), space.kernel)
    found["pretraining"] = distances(real, space(more), space.kernel) if len(more) >= n else None
    return found | {"n": found["base"]["n"], "ratio": ratio(found["aligned"], found["base"])}


def _heldout(study: Study, n: int, size: Size, *, leave_out_damaged: bool) -> list[Image.Image]:
    """The held-out images, n at most. Raises: UserError: if one is damaged and not left out."""
    found = list(open_pretraining(study, size).heldout_pictures(n))
    whole = [picture for picture in found if not isinstance(picture, Damaged)]
    damaged = [picture for picture in found if isinstance(picture, Damaged)]
    if damaged:
        said = (
            f"{len(damaged)} of {len(found)} held-out images cannot be used, such as {damaged[0]}"
        )
        if not leave_out_damaged:
            raise UserError(said)
        console.print(f"left out: {said}", soft_wrap=True)
    return whole


def _skipped(reason: str) -> dict[str, str]:
    return {"skipped": reason}


def distances(
    real: Float[ndarray, "n d"], generated: Float[ndarray, "m d"], kernel: Kernel
) -> dict[str, Any]:
    """Every measure of one set of generated images against the real ones.

    `n` is the smaller of the two numbers of images. The Fréchet distance is skipped, with the
    reason, below 2 d images.
    """
    n, d = min(len(real), len(generated)), real.shape[1]
    if n < 4:
        return {"n": n, "skipped": f"{n} images; precision and recall need at least 4"}
    precision, recall = metrics.precision_recall(real, generated)
    return {
        "n": n,
        "frechet": _frechet(real, generated, n, d),
        kernel: getattr(metrics, kernel)(real, generated),
        "precision": precision,
        "recall": recall,
        "vendi": metrics.vendi_score(generated),
    }


def _frechet(real: ndarray, generated: ndarray, n: int, d: int) -> float | dict[str, str]:
    if n < 2 * d:
        return _skipped(f"{n} images for {d} features; needs at least {2 * d} to mean anything")
    return metrics.frechet_distance(real, generated)


def ratio(aligned: dict[str, Any], base: dict[str, Any]) -> float | dict[str, str]:
    """Fréchet distance of the tuned model over that of the base; above 1 it drew less naturally."""
    found = [side.get("frechet") for side in (aligned, base)]
    if not all(isinstance(value, float) for value in found) or not found[1]:
        return _skipped("needs the Fréchet distance of both models")
    return found[0] / found[1]
