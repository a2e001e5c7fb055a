"""What a run of `align` will take of disk and memory, known before it is begun."""

import torch
from rich.filesize import decimal
from torch import nn

from sayso.data.conditions import LARGEST_TABLE_BYTES, Kept, row_bytes
from sayso.data.pretraining_images import open_pretraining
from sayso.families import Policy
from sayso.families._loading import load_policy
from sayso.stages._training_data import Samples
from sayso.study.identity import model_folder
from sayso.study.model_files import LATENT_BYTES
from sayso.study.study import Study
from sayso.training.checkpoint import KEPT
from sayso.training.options import TrainOptions

WEIGHT_BYTES = 4
"""Trained weights, gradients, the optimiser's two moments and the average are fp32."""


def forecast(
    study: Study,
    options: TrainOptions,
    model: str,
    lora_rank: int,
    images: Samples,
    pretraining_images: int,
    kept: Kept,
) -> dict[str, str]:
    """Sizes on the disk and in memory, each with what it is of.

    Args:
        model, lora_rank: what is trained.
        images: the samples.
        pretraining_images: how many are asked for, at most.
        kept: where conditions come from.
    """
    found, n = _pretraining(study, pretraining_images)
    if model_folder(study.info.base_model, "pipeline") is None:
        return found | {"disk and memory": f"not known until {study.info.base_model} is fetched"}
    policy = load_policy(study, model, torch.device("cpu"))
    if lora_rank:
        policy.add_lora(lora_rank, 0)
    sampler = images.samples[0].sampler if images.samples else study.info.sampler
    c, h, w = policy.latent_shape(sampler.image_size)
    image = c * h * w * LATENT_BYTES
    trained = sum(p.numel() for p in policy.trainable().values()) * WEIGHT_BYTES
    average = trained if options.ema_decay else 0
    checkpoint = 3 * trained + average
    return {
        **found,
        "disk, latents of the samples": decimal(len(images.samples) * image),
        "disk, latents of pre-training images": f"{decimal(n * image)} of {n} images",
        "disk, conditions": _conditions(policy, {"", *images.texts}, n, kept),
        "disk, checkpoints at most": decimal((KEPT + 1) * checkpoint),
        "memory, weights": decimal(_weights(policy)),
        "memory, gradients": decimal(trained),
        "memory, optimiser": decimal(2 * trained),
        "memory, EMA": decimal(average) + (" of the machine's" if options.ema_on_cpu else ""),
        "memory, writing a checkpoint": f"{decimal(checkpoint)} of the machine's",
        "memory, activations": "beside these; they go with micro_batch_size",
    }


def _pretraining(study: Study, asked: int) -> tuple[dict[str, str], int]:
    """What is said of the pre-training images, and how many there are of those asked for."""
    if not asked:
        return {}, 0
    images = open_pretraining(study)
    n, left_out = images.train_count(asked), images.about()
    said = f"{n:,} of {study.info.pretraining}"
    return {"pre-training images": f"{said}; left out: {left_out}" if left_out else said}, n


def _conditions(policy: Policy, known: set[str], captions: int, kept: Kept) -> str:
    one = row_bytes(policy.encode_prompts([max(known, key=len)]))
    texts = len(known) + captions
    size = texts * one
    if kept == "table" or (kept == "auto" and size <= LARGEST_TABLE_BYTES):
        return f"{decimal(size)} at most, a table of {texts} texts"
    return f"0, encoded in every step; a table of {texts} texts would take {decimal(size)}"


def _weights(policy: Policy) -> int:
    """Bytes of all that the policy holds on the device: network, text encoder, autoencoder."""
    modules = {id(m): m for m in vars(policy).values() if isinstance(m, nn.Module)}
    tensors = {id(p): p for module in modules.values() for p in module.parameters()}
    return sum(p.nbytes for p in tensors.values())
