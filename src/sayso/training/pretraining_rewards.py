"""The reward of each pre-training image for its own caption: computed once, kept in the cache."""

from collections.abc import Generator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.base.errors import UserError
from sayso.base.finite import number_format
from sayso.base.types import Size, digest
from sayso.data.pretraining_images import Damaged, Ranges, open_pretraining
from sayso.data.pretraining_latents import IMAGES_A_SHARD
from sayso.data.shards import make_shards, shard_ranges
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
    keys = [
        digest([images.images_identity(start, stop), captions[start:stop], *computed])
        for start, stop in shard_ranges(len(captions), IMAGES_A_SHARD)
    ]
    paths = [study.cache / f"pretraining/reward/{key}.safetensors" for key in keys]

    def make(ranges: Ranges) -> Generator[dict[str, Tensor], None, None]:
        reward = load_reward(study, name, device)
        if isinstance(reward, ClipReward):
            reward.clip.cuts_texts = True
        pictures = images.train_pictures(ranges, workers)
        for start, stop in ranges:
            found = list(islice(pictures, stop - start))
            yield {"reward": _scores(reward, start, found, captions[start:stop])}

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


def _scores(
    reward: Reward, start: int, found: Sequence["Image.Image | Damaged"], captions: Sequence[str]
) -> Float[Tensor, " n"]:
    """The rewards of neighbouring images, 0 for damaged ones.

    Args:
        start: number of the first.
        captions: each image's own.
    """
    whole = {i: picture for i, picture in enumerate(found) if not isinstance(picture, Damaged)}
    rewards = torch.zeros(len(found))
    if whole:
        texts = [captions[i] for i in whole]
        names = [f"pre-training image {start + i + 1}" for i in whole]
        rewards[list(whole)] = reward.score_pictures(whole.values(), texts, names)
    return rewards
