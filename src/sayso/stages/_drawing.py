"""Draw batches of images with a policy, and keep pictures, latents and records of each."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sayso.base import files
from sayso.base.devices import enough_memory
from sayso.base.progress import progress
from sayso.base.types import Sample
from sayso.stages._drawer import Drawer, Encoded
from sayso.stages._drawing_plan import Drawing
from sayso.study.sample_records import writers_file
from sayso.study.study import Study

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from sayso.families import Policy


def draw_all(study: Study, drawer: Drawer, there: Iterable[Sample], run: str) -> None:
    """Draw the batches and keep them; of several processes each draws and writes its own share.

    What follows the drawing of a batch is done beside that of the next: pictures are compressed and
    written in a thread, and decoded there too where that is not the work of the same processor.

    Args:
        drawer: of all the batches; the images of each are drawn at once and share a shard.
        there: the samples that the model has already; of these nothing is changed.
        run: the folder's name of the run, under which each of several processes keeps records.
    """
    known = {sample.id: sample for sample in there}
    accelerator = drawer.accelerator
    own = [sample for batch in drawer.mine for _, sample in batch]
    files.remove_abandoned(study.path / name for s in own for name in (s.path, s.latents))
    records = None
    if accelerator.num_processes > 1:
        records = writers_file(study.path, run, accelerator.process_index)
    with _shown(drawer.model, drawer.mine, accelerator) as advance:

        def keep(encoded: Encoded, latents: "Tensor", pixels: "Tensor") -> None:
            _keep(study, encoded.batch, known, latents, pixels, records)
            advance(len(encoded.batch))

        for policy, encoded in drawer:
            _draw_turn(drawer, policy, encoded, keep)
            del policy  # all that holds the network, when the next one is loaded
    # whoever goes on must find every batch written
    accelerator.wait_for_everyone()


def _draw_turn(
    drawer: Drawer, policy: "Policy", encoded: Sequence[Encoded], keep: Callable[..., None]
) -> None:
    """Draw batches; `keep` is given latents and pixels of each."""
    accelerator = drawer.accelerator
    on_cpu = accelerator.device.type == "cpu"

    def enough() -> AbstractContextManager[None]:
        return enough_memory("--batch-size", drawer.batch_size, drawer.advice)

    def finish(one: Encoded, latents: "Tensor", kept: "Tensor", pixels: "Tensor | None") -> None:
        if pixels is None:
            with enough(), _own_stream(accelerator):
                pixels = _decode(policy, one.batch, latents, accelerator)
        keep(one, kept, pixels)

    with _behind() as later:
        for one in encoded:
            with enough():
                latents = _draw(policy, one, accelerator)
                pixels = _decode(policy, one.batch, latents, accelerator) if on_cpu else None
                # copied here: in the thread a GPU would first draw the whole next batch
                kept = latents.half().cpu()
            later(partial(finish, one, latents, kept, pixels))


@contextmanager
def _shown(
    model: str, mine: Sequence[Sequence[Drawing]], accelerator: "Accelerator"
) -> Iterator[Callable[..., None]]:
    """The progress of the main process; the shares of the others are as large, up to a batch."""
    if not accelerator.is_main_process:
        yield lambda _: None
        return
    n = accelerator.num_processes
    doing = f"drawing {model}" + (f", process 1 of {n}" if n > 1 else "")
    with progress(doing, sum(map(len, mine))) as advance:
        yield advance


@contextmanager
def _behind() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Gives `later(work)`, which does the work in a thread while the caller goes on.

    One after the other: the next call waits for the work before it and raises what that raised. So
    does the end of the block. A block that fails waits for the work that was begun.
    """
    before: Future[None] | None = None

    def later(work: Callable[[], None]) -> None:
        nonlocal before
        if before:
            before.result()
        before = thread.submit(work)

    with ThreadPoolExecutor(1, "keeping") as thread:
        yield later
        if before:
            before.result()


def _own_stream(accelerator: "Accelerator") -> AbstractContextManager[Any]:
    """Let a GPU compute what the block asks for beside what other threads ask for."""
    import torch

    if accelerator.device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(accelerator.device))


def _draw(policy: "Policy", encoded: Encoded, accelerator: "Accelerator") -> "Tensor":
    """The latents of a batch, which can be kept in fp16; computed to the end, all finite."""
    import torch

    from sayso.base.finite import refuse_not_finite

    batch, device = encoded.batch, policy.device
    sampler = batch[0][1].sampler
    texts = list(dict.fromkeys(prompt.text for prompt, _ in batch))
    rows = torch.tensor([texts.index(prompt.text) for prompt, _ in batch])
    with torch.inference_mode(), accelerator.autocast():
        cond = {key: value[rows].to(device) for key, value in encoded.cond.items()}
        uncond = {key: value.to(device) for key, value in encoded.uncond.items()}
        latents = policy.sample(cond, uncond, [sample.seed for _, sample in batch], sampler)
        network = f"the {policy.network_kind} of {policy.name}"
        refuse_not_finite(latents, _names(batch), network)
        kept = f"storing in fp16 the latents of {network}"
        refuse_not_finite(latents.half(), _names(batch), kept)
    return latents


def _names(batch: Sequence[Drawing]) -> list[str]:
    return [f"prompt {prompt.text!r}, seed {sample.seed}" for prompt, sample in batch]


def _decode(
    policy: "Policy", batch: Sequence[Drawing], latents: "Tensor", accelerator: "Accelerator"
) -> "Tensor":
    """Pictures of a batch, uint8 [b, H, W, 3] on the CPU, decoded in portions."""
    import torch

    size, names = policy.portion(batch[0][1].sampler.image_size), _names(batch)
    with torch.inference_mode(), accelerator.autocast():
        return torch.cat(
            [
                _pixels(policy, latents[i : i + size], names[i : i + size])
                for i in range(0, len(batch), size)
            ]
        )


def _pixels(policy: "Policy", latents: "Tensor", drawn: Sequence[str]) -> "Tensor":
    """Pictures of a portion of a batch, uint8 [b, H, W, 3] on the CPU."""
    import torch

    from sayso.base.finite import refuse_not_finite

    images = policy.decode(latents)
    refuse_not_finite(images, drawn, f"the VAE decoder of {policy.name}")
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def _keep(
    study: Study,
    batch: Sequence[Drawing],
    there: Mapping[str, Sample],
    latents: "Tensor",
    pixels: "Tensor",
    records: Path | None,
) -> None:
    """Keep what is new of a batch; what is `there`, by id, stays as it is, its latents too.

    Args:
        records: see `Study.add_samples`.
    """
    from PIL import Image

    from sayso.data.latents import load_latents

    shard = {s.id: row.clone() for (_, s), row in zip(batch, latents, strict=True)}
    if old := [there[sample_id] for sample_id in shard if sample_id in there]:
        stored = load_latents(study, old)
        shard |= {s.id: row.clone() for s, row in zip(old, stored, strict=True)}
    new = [i for i, (_, sample) in enumerate(batch) if sample.id not in there]
    images = [Image.fromarray(pixels[i].numpy()) for i in new]
    study.add_samples([batch[i][1] for i in new], images, shard, records)
