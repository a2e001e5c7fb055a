"""The reward of each pre-training image for its own caption: computed once, kept in the cache."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.base.errors import UserError
from sayso.base.finite import number_format
from sayso.base.types import Size, digest
from sayso.data.clip import stacked
from sayso.data.pretraining_images import Damaged, PretrainingSet, Ranges, open_pretraining
from sayso.data.pretraining_latents import IMAGES_A_SHARD
from sayso.data.shards import make_shards
from sayso.rewards import ClipReward, Reward, load_reward
from sayso.study.study import Study
from sayso.training.sources import source_of_reward

if TYPE_CHECKING:
    from PIL import Image


def pretraining_rewards(
    study: Study, name: str, n: int, size: Size, device: torch.device, workers: int = 0
) -> Float[Tensor, " n"]:
    """The reward of the first `n` pre-training images, in order; 0 for damaged ones.

    Captions that are longer than CLIP reads are cut, as the model cuts them in training.

    Args:
        name: of the reward, as in `load_reward`.
        size: what the images are brought to.
        device: where the reward is computed.
        workers: processes that decode ahead; 0 = none beside this one.
    Raises: UserError: as `load_reward`, or if a reward is negative or not finite, or all are 0.
    """
    images = open_pretraining(study, size)
    captions = images.train_captions(n)
    computed = [number_format(device), device.type, *source_of_reward(study, name).values()]
    starts = range(0, len(captions), IMAGES_A_SHARD)
    parts = [(start, min(start + IMAGES_A_SHARD, len(captions))) for start in starts]
    keys = [
        digest([images.images_identity(*part), captions[slice(*part)], *computed]) for part in parts
    ]
    paths = [study.cache / f"pretraining/reward/{key}.safetensors" for key in keys]

    def make(ranges: Ranges) -> Generator[dict[str, Tensor], None, None]:
        reward = load_reward(study, name, device)
        if isinstance(reward, ClipReward):
            reward.clip.cuts_texts = True
        yield from _Scoring(reward, images, captions, workers).shards(ranges)

    doing = "scoring pre-training images"
    found = make_shards(paths, IMAGES_A_SHARD, len(captions), make, doing)
    return _checked(found.read("reward", torch.arange(len(captions))), name)


def _checked(rewards: Tensor, name: str) -> Tensor:
    if (rewards < 0).any():
        raise UserError(
            f"reward {name} is {rewards.min():.3g} for a pre-training image, and images cannot be "
            "drawn in proportion to a negative number; choose a reward in [0, 1], such as a run of "
            "fit, or --pretraining-draw uniform"
        )
    if not rewards.any():
        raise UserError(
            f"reward {name} is 0 for every pre-training image; give --pretraining-draw uniform"
        )
    return rewards


@dataclass(frozen=True)
class _Scoring:
    """Scores images for their captions."""

    reward: Reward
    images: PretrainingSet
    captions: Sequence[str]
    workers: int

    def shards(self, ranges: Ranges) -> Generator[dict[str, Tensor], None, None]:
        """The rewards of each range."""
        pictures = self.images.train_pictures(ranges, self.workers)
        for start, stop in ranges:
            found = list(islice(pictures, stop - start))
            whole = [i for i, picture in enumerate(found) if not isinstance(picture, Damaged)]
            rewards = torch.zeros(stop - start)
            if whole:
                rewards[whole] = self._score(start, whole, found)
            yield {"reward": rewards}

    @torch.no_grad()
    def _score(self, start: int, whole: Sequence[int], found: Sequence[object]) -> Tensor:
        texts, scores = (self.captions[start + i] for i in whole), list[Tensor]()
        pictures = (cast("Image.Image", found[i]) for i in whole)
        for batch in stacked(pictures):
            scores.append(self.reward.score(batch, list(islice(texts, len(batch)))).float().cpu())
        rewards = torch.cat(scores)
        for i, finite in zip(whole, rewards.isfinite().tolist(), strict=True):
            if not finite:
                raise UserError(
                    f"reward {type(self.reward).__name__} is NaN or infinite for pre-training "
                    f"image {start + i + 1}; look at the image and at the reward's weights"
                )
        return rewards
