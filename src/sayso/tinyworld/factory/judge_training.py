"""Trains the judge: `python -m sayso.tinyworld.factory.judge_training`.

The renderer says where each object stands, so every cell of every picture is supervised. Mixed
and empty pictures teach it to see what a diffusion model draws and the renderer never does;
blur, noise and shifts of tone keep it from relying on the renderer's crispness.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from sayso.base import files
from sayso.base.progress import progress
from sayso.tinyworld import paths
from sayso.tinyworld.judge import WEIGHTS
from sayso.tinyworld.judge_network import CELL_PX, GRID, JudgeNetwork
from sayso.tinyworld.render import Centre, compose
from sayso.tinyworld.scenes import BACKGROUNDS, COLOURS, OBJECTS, random_scene

_MOST = 5  # objects in a picture
_CHUNK = 500
_SPREAD = 0.8  # cells; width of the bump of objectness at a centre


@dataclass(frozen=True)
class JudgeTraining:
    """Options of the judge's training."""

    out: Path = paths().judge
    """folder for the finished weights"""
    work: Path = Path("judge-training")
    """folder for rendered pictures and checkpoints; delete it to start anew"""
    max_steps: int = 1500
    """updates"""
    batch_size: int = 96
    """pictures a step"""
    pictures: int = 32_000
    """pictures rendered once and used repeatedly"""
    learning_rate: float = 3e-3
    """highest learning rate; it rises over the first tenth and falls to zero"""
    seed: int = 1
    """fixes pictures, weights and order"""
    processes: int = 2
    """processes that render"""
    checkpoint_steps: int = 250
    """steps between checkpoints"""


class Batch(NamedTuple):
    """Pictures [b 3 64 64]; for up to five objects position in pixels and classes (-1: none)."""

    images: Tensor
    centres: Tensor
    objects: Tensor
    colours: Tensor
    background: Tensor


def train(config: JudgeTraining) -> None:
    """Train the judge, or go on where an interrupted training stopped, and save its weights."""
    config.work.mkdir(parents=True, exist_ok=True)
    data = _examples(config)
    torch.manual_seed(config.seed)
    network = JudgeNetwork()
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-2)
    checkpoint = config.work / "checkpoint.safetensors"
    start = _restore(checkpoint, network, optimizer) if checkpoint.exists() else 0
    with progress("judge", config.max_steps, "steps", start) as advance:
        for step in range(start, config.max_steps):
            loss = _update(network, optimizer, data, config, step)
            advance(note=f"loss {loss:.3f}")
            if (step + 1) % config.checkpoint_steps == 0:
                _keep(checkpoint, network, optimizer, step + 1)
    _save(network, config.out)


def _update(
    network: JudgeNetwork,
    optimizer: torch.optim.Optimizer,
    data: dict[str, Tensor],
    config: JudgeTraining,
    step: int,
) -> float:
    rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)  # the same when resumed
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * _schedule(step / config.max_steps)
    batch = _batch(data, config.batch_size, rng)
    with torch.autocast("cpu", torch.bfloat16):
        images = augment(batch.images, rng).contiguous(memory_format=torch.channels_last)
        maps = network(images)
    logits = [m.float() for m in (maps.objectness, maps.object, maps.colour, maps.background)]
    loss = judge_loss(logits[0], logits[1], logits[2], logits[3], batch)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the judge's loss is {loss.item()} at step {step}")
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    return loss.item()


def _schedule(done: float) -> float:
    """Linear rise over the first tenth, cosine fall after it."""
    if done < 0.1:
        return 0.05 + 9.5 * done
    return 0.5 + 0.5 * float(np.cos(np.pi * (done - 0.1) / 0.9))


def judge_loss(
    objectness: Float[Tensor, "b 16 16"],
    object_logits: Float[Tensor, "b objects 16 16"],
    colour_logits: Float[Tensor, "b colours 16 16"],
    background_logits: Float[Tensor, "b backgrounds"],
    batch: Batch,
) -> Float[Tensor, ""]:
    """Focal loss on the bumps of objectness, cross-entropy on classes near the centres."""
    bumps = _bumps(batch.centres, batch.objects)
    bump, nearest = bumps.max(1)
    total = (batch.objects >= 0).sum().clamp(min=1)
    p = objectness.sigmoid().clamp(1e-4, 1 - 1e-4)
    hit = bump > 0.999
    focal = torch.where(hit, (1 - p) ** 2 * -p.log(), (1 - bump) ** 4 * p**2 * -(1 - p).log())
    weight = bump * (bump > 0.2)
    classes = torch.zeros(())
    for logits, labels in ((object_logits, batch.objects), (colour_logits, batch.colours)):
        at_cell = labels.gather(1, nearest.flatten(1)).view_as(nearest).clamp(min=0)
        classes = classes + (F.cross_entropy(logits, at_cell, reduction="none") * weight).sum()
    background = F.cross_entropy(background_logits, batch.background)
    return focal.sum() / total + classes / weight.sum().clamp(min=1) + 0.5 * background


def _bumps(centres: Tensor, objects: Tensor) -> Float[Tensor, "b most 16 16"]:
    """One bump of height 1 per object, at the cell of its centre; zero for absent objects."""
    at = (centres / CELL_PX).floor().clamp(0, GRID - 1)
    line = torch.arange(GRID).float()
    dx = (line - at[..., 0:1])[:, :, None, :]
    dy = (line - at[..., 1:2])[:, :, :, None]
    bumps = (-(dx**2 + dy**2) / (2 * _SPREAD**2)).exp()
    return bumps * (objects >= 0)[:, :, None, None]


def augment(images: Float[Tensor, "b 3 64 64"], rng: torch.Generator) -> Float[Tensor, "b 3 64 64"]:
    """Blur a part of the batch, shift its tones, and add fine and coarse noise."""
    b, quarter = len(images), len(images) // 4
    out = images.clone()
    size = int(torch.randint(36, 60, (), generator=rng))
    small = F.interpolate(images[:quarter], (size, size), mode="bilinear", antialias=True)
    out[:quarter] = F.interpolate(small, (64, 64), mode="bilinear")
    soft = F.avg_pool2d(F.pad(images[quarter : 2 * quarter], (1,) * 4, mode="replicate"), 3, 1)
    mix = torch.rand((quarter, 1, 1, 1), generator=rng)
    out[quarter : 2 * quarter].lerp_(soft, mix)
    coarse = torch.randn((b, 3, 16, 16), generator=rng)
    fine = torch.randn(images.shape, generator=rng)
    strength = torch.rand((2, b, 1, 1, 1), generator=rng) ** 2
    tone = 1 + 0.12 * (2 * torch.rand((b, 1, 1, 1), generator=rng) - 1)
    shift = 0.04 * (2 * torch.rand((b, 3, 1, 1), generator=rng) - 1)
    coarse = F.interpolate(coarse, (64, 64), mode="bilinear")
    out = out * tone + shift + 0.08 * strength[0] * fine + 0.06 * strength[1] * coarse
    return out.clamp(0, 1)


def _batch(data: dict[str, Tensor], size: int, rng: torch.Generator) -> Batch:
    chosen = torch.randint(len(data["images"]), (size,), generator=rng)
    images = data["images"][chosen].permute(0, 3, 1, 2).float() / 255
    centres, objects, colours, background = (
        data[name][chosen] for name in ("centres", "objects", "colours", "background")
    )
    mirror = torch.rand(size, generator=rng) < 0.5
    images[mirror] = images[mirror].flip(3)
    centres[mirror, :, 0] = 64 - centres[mirror, :, 0]
    return Batch(images, centres, objects, colours, background)


def _examples(config: JudgeTraining) -> dict[str, Tensor]:
    """Render the training pictures, or load those of an interrupted training."""
    file = config.work / f"pictures-{config.seed}-{config.pictures}.safetensors"
    if not file.exists():
        seeds = np.random.SeedSequence(config.seed).spawn(config.pictures // _CHUNK)
        with (
            ProcessPoolExecutor(config.processes, get_context("spawn")) as pool,
            progress("rendering", config.pictures, "pictures") as advance,
        ):
            chunks = []
            for chunk in pool.map(_render_chunk, seeds):
                chunks.append(chunk)
                advance(_CHUNK)
        joined = [torch.from_numpy(np.concatenate(column)) for column in zip(*chunks, strict=True)]
        names = ("images", "centres", "objects", "colours", "background")
        with files.new_file(file) as temporary:
            save_file(dict(zip(names, joined, strict=True)), temporary)
    return load_file(file)


def _render_chunk(seed: np.random.SeedSequence) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    rows = [_render_one(rng) for _ in range(_CHUNK)]
    return tuple(np.stack(column) for column in zip(*rows, strict=True))


def _render_one(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    scene = random_scene(rng)
    picture, centres = compose(mixed_items(rng), scene.background, rng)
    return picture, *_labels(centres), np.array(BACKGROUNDS.index(scene.background))


def mixed_items(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Choose what stands in a training picture.

    Half the pictures hold alike objects, three in ten mix objects, colours or both, and the rest
    mix one stranger into alike objects or are empty.
    """
    scene, other = random_scene(rng), random_scene(rng)
    alike = [(scene.object, scene.colour)] * scene.count
    kind = rng.random()
    if kind < 0.5:
        return alike
    if kind < 0.6:
        return [(random_scene(rng).object, scene.colour) for _ in alike]
    if kind < 0.7:
        return [(scene.object, random_scene(rng).colour) for _ in alike]
    if kind < 0.8:
        return [(s.object, s.colour) for s in (random_scene(rng) for _ in alike)]
    if kind < 0.94:
        return [(other.object, other.colour), *alike[1:]]
    return []


def _labels(centres: list[Centre]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    where = np.zeros((_MOST, 2), np.float32)
    objects, colours = np.full(_MOST, -1), np.full(_MOST, -1)
    for i, centre in enumerate(centres):
        where[i] = centre.x, centre.y
        objects[i], colours[i] = OBJECTS.index(centre.object), COLOURS.index(centre.colour)
    return where, objects, colours


def _keep(file: Path, network: JudgeNetwork, optimizer: torch.optim.Optimizer, step: int) -> None:
    state = {f"network.{k}": v for k, v in network.state_dict().items()}
    for i, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{k}": v for k, v in moments.items()}
    state = {k: v.contiguous() for k, v in state.items()} | {"step": torch.tensor(step)}
    with files.new_file(file) as temporary:
        save_file(state, temporary)


def _restore(file: Path, network: JudgeNetwork, optimizer: torch.optim.Optimizer) -> int:
    saved = load_file(file)
    network.load_state_dict(
        {k.removeprefix("network."): v for k, v in saved.items() if k.startswith("network.")}
    )
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            moments.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return int(saved["step"])


def _save(network: JudgeNetwork, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    half = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    save_file(half, folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes files that only their owner can read


if __name__ == "__main__":
    train(tyro.cli(JudgeTraining, description=__doc__))
