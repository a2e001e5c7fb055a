"""Draw batches of images with a policy, and keep pictures, latents and records of each."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sayso.base.devices import MixedPrecision, enough_memory, make_accelerator
from sayso.base.progress import progress
from sayso.base.types import Sample
from sayso.stages._drawing_plan import Drawing
from sayso.study.sample_records import writers_file
from sayso.study.study import Study

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from sayso.families import Cond, Policy


def load_drawer(
    study: Study, batches: Sequence[Sequence[Drawing]], precision: MixedPrecision
) -> "tuple[Policy, Accelerator]":
    """The policy, after it has seen that it can draw these prompts at this size.

    Raises: UserError: if a prompt does not fit the tokenizer, or the sampler the model.
    """
    from sayso.families._loading import load_policy

    first = batches[0][0][1]
    accelerator = make_accelerator(precision)
    policy = load_policy(study, first.model, accelerator.device)
    policy.check_sampler(first.sampler)
    texts = dict.fromkeys(prompt.text for batch in batches for prompt, _ in batch)
    policy.check_prompts([*texts, first.sampler.negative_prompt])
    policy.network = accelerator.prepare_model(policy.network.eval(), evaluation_mode=True)
    return policy, accelerator


def draw_all(
    study: Study,
    batches: Sequence[Sequence[Drawing]],
    there: Iterable[Sample],
    policy: "Policy",
    accelerator: "Accelerator",
    *,
    batch_size: int,
    run: str,
) -> None:
    """Draw the batches and keep them; of several processes each draws and writes its own share.

    What follows the drawing of a batch is done beside that of the next: pictures are compressed and
    written in a thread, and decoded there too where that is not the work of the same processor.

    Args:
        batches: all of one model; the images of each are drawn at once and share a shard.
        there: the samples that the model has already; of these nothing is changed.
        batch_size: as the user gave it, for the advice where memory runs out.
        run: the folder's name of the run, under which each of several processes keeps records.
    """
    known = {sample.id: sample for sample in there}
    process, n = accelerator.process_index, accelerator.num_processes
    records = writers_file(study.path, run, process) if n > 1 else None
    mine = batches[process::n]
    on_cpu = accelerator.device.type == "cpu"

    def finish(
        batch: Sequence[Drawing], latents: "Tensor", kept: "Tensor", pixels: "Tensor | None"
    ) -> None:
        if pixels is None:
            with enough_memory("--batch-size", batch_size), _own_stream(accelerator):
                pixels = _decode(policy, batch, latents, accelerator)
        _keep(study, batch, known, kept, pixels, records)
        advance(len(batch))

    with _shown(batches[0][0][1].model, mine, accelerator) as advance, _behind() as later:
        for batch in mine:
            with enough_memory("--batch-size", batch_size):
                latents = _draw(policy, batch, accelerator)
                pixels = _decode(policy, batch, latents, accelerator) if on_cpu else None
                # copied here: in the thread a GPU would first draw the whole next batch
                kept = latents.half().cpu()
            later(partial(finish, batch, latents, kept, pixels))
    # whoever goes on must find every batch written
    accelerator.wait_for_everyone()


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


def _draw(policy: "Policy", batch: Sequence[Drawing], accelerator: "Accelerator") -> "Tensor":
    """The latents of a batch, which can be kept in fp16; computed to the end, all finite."""
    import torch

    from sayso.base.finite import refuse_not_finite

    sampler = batch[0][1].sampler
    texts = list(dict.fromkeys(prompt.text for prompt, _ in batch))
    rows = torch.tensor([texts.index(prompt.text) for prompt, _ in batch])
    with torch.inference_mode(), accelerator.autocast():
        cond = {key: v[rows] for key, v in _encoded(policy, texts).items()}
        uncond = _encoded(policy, [sampler.negative_prompt])
        latents = policy.sample(cond, uncond, [sample.seed for _, sample in batch], sampler)
        network = f"the {policy.network_kind} of {policy.name}"
        refuse_not_finite(latents, _names(batch), network)
        kept = f"storing in fp16 the latents of {network}"
        refuse_not_finite(latents.half(), _names(batch), kept)
    return latents


def _names(batch: Sequence[Drawing]) -> list[str]:
    return [f"prompt {prompt.text!r}, seed {sample.seed}" for prompt, sample in batch]


def _encoded(policy: "Policy", texts: Sequence[str]) -> "Cond":
    from sayso.base.finite import refuse_not_finite

    cond = policy.encode_prompts(texts)
    for value in cond.values():
        named = [f"prompt {text!r}" for text in texts]
        refuse_not_finite(value, named, f"the text encoder of {policy.name}")
    return cond


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
