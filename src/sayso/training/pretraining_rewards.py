"""The reward of each pre-training image for its own caption: computed once, kept in the cache."""

from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.finite import number_format
from sayso.base.progress import console
from sayso.base.types import Size, digest
from sayso.data.pretraining_images import Damaged, Ranges, open_pretraining
from sayso.data.pretraining_latents import IMAGES_A_SHARD
from sayso.data.reading import Read
from sayso.data.shards import make_shards, shard_ranges
from sayso.rewards import ClipReward, Reward, load_reward
from sayso.rewards._contract import BATCH_SIZE
from sayso.study.study import Study
from sayso.training.sources import source_of_reward

if TYPE_CHECKING:
    from PIL import Image

READ = "read"
"""Tensor of the shards: how much of each caption the reward reads. It is in a shard's name too, so
that one without it is not taken for one that has it."""


def pretraining_rewards(
    study: Study,
    name: str,
    n: int,
    size: Size,
    device: torch.device,
    workers: int = 0,
    *,
    leave_out_damaged: bool = False,
) -> Float[Tensor, " n"]:
    """The reward of the first `n` pre-training images, in order; 0 for damaged ones.

    Captions that are longer than the reward reads are cut, as the model cuts them in training.

    Args:
        name: of the reward, as in `load_reward`.
        size: what the images are brought to.
        device: where the reward is computed.
        workers: processes that decode ahead; 0 = none beside this one.
        leave_out_damaged: whether images whose caption the reward cannot read get 0.
    Raises: UserError: as `load_reward`, or if a reward is negative or not finite, or all are 0;
        once all are scored, if captions cannot be read and are not left out.
    """
    images = open_pretraining(study, size)
    captions = images.train_captions(n)
    computed = [READ, number_format(device), device.type, *source_of_reward(study, name).values()]
    keys = [
        digest([images.images_identity(start, stop), captions[start:stop], *computed])
        for start, stop in shard_ranges(len(captions), IMAGES_A_SHARD)
    ]
    paths = [study.cache / f"pretraining/reward/{key}.safetensors" for key in keys]

    def make(ranges: Ranges) -> Generator[dict[str, Tensor], None, None]:
        reward = _loaded(study, name, device)
        pictures = images.train_pictures(ranges, workers)
        for start, stop in ranges:
            yield _shard(reward, name, pictures, start, captions[start:stop])

    doing = "scoring pre-training images"
    found = make_shards(paths, IMAGES_A_SHARD, len(captions), make, doing)
    every = torch.arange(len(captions))
    _say_read(study, captions, found.read(READ, every), refuse=not leave_out_damaged)
    rewards = found.read("reward", every)
    if not rewards.any():
        raise UserError(
            f"reward {name} is 0 for every pre-training image; give --pretraining-draw uniform"
        )
    return rewards


def _loaded(study: Study, name: str, device: torch.device) -> Reward:
    """The reward, which cuts long captions without a word: they are counted at the end."""
    reward = load_reward(study, name, device)
    reward.has_said_cut = True
    if isinstance(reward, ClipReward):
        reward.clip.cuts_texts = True
    return reward


def _shard(
    reward: Reward,
    name: str,
    pictures: "Iterator[Image.Image | Damaged]",
    start: int,
    captions: Sequence[str],
) -> dict[str, Tensor]:
    """What is kept of neighbouring images.

    Args:
        name: of the reward.
        pictures: those that come next are taken.
        start: number of the first.
        captions: each image's own.
    Raises: UserError: if a reward is negative.
    """
    rewards, reads = list[Tensor](), list[int]()
    for at in range(0, len(captions), BATCH_SIZE):
        texts = captions[at : at + BATCH_SIZE]
        read = reward.how_read(texts)
        found = _scores(reward, start + at, list(islice(pictures, len(texts))), texts, read)
        _refuse_negative(found, name)
        rewards.append(found)
        reads += read
    return {"reward": torch.cat(rewards), READ: torch.tensor(reads, dtype=torch.int8)}


def _scores(
    reward: Reward,
    start: int,
    found: Sequence["Image.Image | Damaged"],
    captions: Sequence[str],
    read: Sequence[Read],
) -> Float[Tensor, " n"]:
    """The rewards of neighbouring images, 0 for damaged ones and where no caption is read."""
    whole = {
        i: picture
        for i, picture in enumerate(found)
        if not isinstance(picture, Damaged) and read[i] != Read.NOT
    }
    rewards = torch.zeros(len(found))
    if whole:
        texts = [captions[i] for i in whole]
        names = [f"pre-training image {start + i + 1}" for i in whole]
        rewards[list(whole)] = reward.score_pictures(whole.values(), texts, names)
    return rewards


def _refuse_negative(rewards: Float[Tensor, " n"], name: str) -> None:
    if (rewards < 0).any():
        raise UserError(
            f"reward {name} is {rewards.min():.3g} for a pre-training image, and images cannot be "
            "drawn in proportion to a negative number; choose a reward in [0, 1], such as a run of "
            "fit, or --pretraining-draw uniform"
        )


def _say_read(
    study: Study, captions: Sequence[str], read: Int[Tensor, " n"], *, refuse: bool
) -> None:
    """Say how many captions the reward cuts, and count and name those that it cannot read.

    Args:
        refuse: whether the command ends where it cannot.
    """
    total = f"of {len(captions):,} captions of pre-training images"
    if cut := int((read == Read.BEGINNING).sum()):
        console.print(f"{cut:,} {total} are longer than the reward reads and are truncated for it")
    unread = [repr(text) for text, r in zip(captions, read.tolist(), strict=True) if r == Read.NOT]
    if not unread:
        return
    listed = study.cache / "pretraining/captions-not-read.txt"
    files.write_bytes(listed, ("\n".join(unread) + "\n").encode())
    said = (
        f"{len(unread):,} {total} have a word that the reward's tokenizer does not know, such as "
        f"{unread[0]} ({listed} lists them)"
    )
    if refuse:
        raise UserError(
            f"{said}. All other images are scored: run the command again with --leave-out-damaged "
            "to train without theirs, or with --pretraining-draw uniform"
        )
    console.print(f"{said}; their images are left out", soft_wrap=True, markup=False)
