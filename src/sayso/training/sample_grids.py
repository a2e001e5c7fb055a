"""Sample grids: a few prompts, drawn from the same noise each time with the weights of the moment.

Drawing leaves no trace in the training: its noise has generators of its own, the state of all
others is put back, and the network is in training mode again afterwards.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from sayso.base import files
from sayso.base.contact_sheet import contact_sheet
from sayso.base.finite import refuse_not_finite
from sayso.base.progress import console
from sayso.base.types import Sampler
from sayso.families import Cond, Policy, take
from sayso.families._older_selves import unwrapped
from sayso.study.run import Run
from sayso.training.trackers import Trackers


@dataclass(frozen=True)
class SamplePrompts:
    """What is drawn: texts, a seed for each, their conditions, and how.

    Attributes:
        cond: of all texts, on the CPU.
        uncond: of the negative prompt, one row, on the CPU.
        decoder: has the autoencoder; the policy itself, or another whose autoencoder is on the CPU
            between two grids; None in a process that writes no picture.
    """

    texts: Sequence[str]
    seeds: Sequence[int]
    cond: Cond
    uncond: Cond
    sampler: Sampler
    decoder: Policy | None

    @classmethod
    def encoded(
        cls,
        policy: Policy,
        prompts: Sequence[tuple[str, int]],
        sampler: Sampler,
        accelerator: Accelerator,
    ) -> "SamplePrompts":
        """Encode prompts with the policy's text encoder; it is then the decoder.

        Args:
            prompts: text and seed of each.
        Raises: UserError: if a prompt does not fit the tokenizer.
        """
        texts = [text for text, _ in prompts]
        policy.check_prompts([*texts, sampler.negative_prompt])
        policy.check_sampler(sampler)
        with torch.no_grad(), accelerator.autocast():
            cond, uncond = (
                {key: value.cpu() for key, value in policy.encode_prompts(some).items()}
                for some in (texts, [sampler.negative_prompt])
            )
        for value in cond.values():
            named = [f"prompt {text!r}" for text in texts]
            refuse_not_finite(value, named, f"the text encoder of {policy.name}")
        decoder = policy if accelerator.is_main_process else None
        return cls(texts, [seed for _, seed in prompts], cond, uncond, sampler, decoder)


@dataclass(frozen=True)
class SampleGrids:
    """Draws the grids of a run.

    Attributes:
        every: steps between two grids; the first is of the start.
        at_once: images that are drawn at a time, ≥ 1.
    """

    prompts: SamplePrompts
    every: int
    at_once: int

    def draw(
        self, step: int, policy: Policy, accelerator: Accelerator, run: Run, trackers: Trackers,
        *, sharded: bool, compiled: bool,
    ) -> None:  # fmt: skip
        """Write `samples/step-<step>.png` of the run, and send it to the trackers.

        All processes call it: the main one draws alone, but of a sharded network all draw.

        Args:
            step: updates made so far.
            policy: being trained.
            sharded, compiled: how its network is spread; drawing compiles nothing.
        """
        if not (sharded or accelerator.is_main_process):
            return
        with _undisturbed(policy, compiled=compiled), accelerator.autocast():
            latents = self._latents(policy)
            pictures = self._pictures(latents, policy) if accelerator.is_main_process else []
        if not pictures:
            return
        if lost := pictures.count(None):
            console.print(
                f"{lost} of {len(pictures)} images of the sample grid of step {step} are not "
                "finite, and are left grey"
            )
        sheet = contact_sheet(pictures, self.prompts.texts, f"{run.name} · step {step}")
        with files.new_file(run.sample_grid(step)) as path:
            sheet.image.save(path, "PNG", pnginfo=sheet.png_info())
        trackers.show(step, sheet.image)

    def _latents(self, policy: Policy) -> Tensor:
        prompts, device = self.prompts, policy.device
        uncond = {key: value.to(device) for key, value in prompts.uncond.items()}
        found = []
        for rows in torch.arange(len(prompts.texts)).split(self.at_once):
            cond = {key: value.to(device) for key, value in take(prompts.cond, rows).items()}
            seeds = [prompts.seeds[i] for i in rows.tolist()]
            found.append(policy.sample(cond, uncond, seeds, prompts.sampler))
        return torch.cat(found)

    def _pictures(self, latents: Tensor, policy: Policy) -> list[Image.Image | None]:
        prompts, decoder = self.prompts, self.prompts.decoder
        if decoder is None:
            return []
        if decoder is not policy:
            decoder.move("vae", policy.device)
        size = decoder.portion(prompts.sampler.image_size)
        images = torch.cat([decoder.decode(part) for part in latents.split(size)])
        if decoder is not policy:
            decoder.move("vae", torch.device("cpu"))
        return [_picture(image) for image in images.permute(0, 2, 3, 1).float().cpu()]


def _picture(image: Tensor) -> Image.Image | None:
    """The picture of [H, W, 3] in [0, 1]; None of one that is not finite."""
    if not image.isfinite().all():
        return None
    return Image.fromarray((image * 255).round().numpy().astype(np.uint8))


@contextmanager
def _undisturbed(policy: Policy, *, compiled: bool) -> Iterator[None]:
    """A block that draws with the policy's network, in eval mode, and leaves all as it was."""
    wrapped, device = policy.network, policy.device
    network = policy.network = unwrapped(wrapped)
    training = [module for module in network.modules() if module.training]
    gpus = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(gpus), torch.no_grad(), _eager(compiled=compiled):
            network.eval()
            yield
    finally:
        for module in training:
            module.training = True
        policy.network = wrapped


def _eager(*, compiled: bool) -> AbstractContextManager[object]:
    # other shapes and modes than those of a step would be compiled too, and change how it is
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
