"""Draw batches of images with a policy, and keep pictures, latents and records of each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sayso.base.devices import MixedPrecision, enough_memory, make_accelerator
from sayso.base.progress import progress
from sayso.base.types import Sample
from sayso.stages._drawing_plan import Drawing
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
    batches: list[list[Drawing]],
    there: Iterable[Sample],
    policy: "Policy",
    accelerator: "Accelerator",
    *,
    batch_size: int,
) -> None:
    """Draw the batches, one per process at a time; the main process writes them in order.

    Args:
        batches: all of one model; the images of each are drawn at once and share a shard.
        there: the samples that the model has already; of these nothing is changed.
        batch_size: as the user gave it, for the advice where memory runs out.
    """
    from accelerate.utils import gather_object

    known = {sample.id: sample for sample in there}
    model = batches[0][0][1].model
    with progress(f"drawing {model}", sum(map(len, batches))) as advance:
        for together in _chunks(batches, accelerator.num_processes):
            mine = together[accelerator.process_index : accelerator.process_index + 1]
            with enough_memory("--batch-size", batch_size):
                drawn = [_draw(policy, batch, accelerator) for batch in mine]
            for batch, done in zip(together, gather_object(drawn), strict=True):
                if accelerator.is_main_process:
                    _keep(study, batch, known, *done)
                advance(len(batch))
    # whoever goes on must find the last batch written
    accelerator.wait_for_everyone()


def _chunks(batches: list[list[Drawing]], size: int) -> Iterator[list[list[Drawing]]]:
    for start in range(0, len(batches), size):
        yield batches[start : start + size]


def _draw(policy: "Policy", batch: Sequence[Drawing], accelerator: "Accelerator") -> Any:
    """Latents in fp16, as they are kept, and pixels of a batch, on the CPU; all finite."""
    import torch

    from sayso.base.finite import refuse_not_finite

    sampler = batch[0][1].sampler
    texts = list(dict.fromkeys(prompt.text for prompt, _ in batch))
    rows = torch.tensor([texts.index(prompt.text) for prompt, _ in batch])
    drawn = [f"prompt {prompt.text!r}, seed {sample.seed}" for prompt, sample in batch]
    with torch.inference_mode(), accelerator.autocast():
        cond = {key: v[rows] for key, v in _encoded(policy, texts).items()}
        uncond = _encoded(policy, [sampler.negative_prompt])
        latents = policy.sample(cond, uncond, [sample.seed for _, sample in batch], sampler)
        network = f"the {policy.network_kind} of {policy.name}"
        refuse_not_finite(latents, drawn, network)
        kept = latents.half()
        refuse_not_finite(kept, drawn, f"storing in fp16 the latents of {network}")
        size = policy.portion(sampler.image_size)
        pixels = [
            _pixels(policy, latents[i : i + size], drawn[i : i + size])
            for i in range(0, len(batch), size)
        ]
    return kept.cpu(), torch.cat(pixels)


def _encoded(policy: "Policy", texts: Sequence[str]) -> "Cond":
    from sayso.base.finite import refuse_not_finite

    cond = policy.encode_prompts(texts)
    for value in cond.values():
        named = [f"prompt {text!r}" for text in texts]
        refuse_not_finite(value, named, f"the text encoder of {policy.name}")
    return cond


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
) -> None:
    """Keep what is new of a batch; what is `there`, by id, stays as it is, its latents too."""
    from PIL import Image

    from sayso.data.latents import load_latents

    shard = {s.id: row.clone() for (_, s), row in zip(batch, latents, strict=True)}
    if old := [there[sample_id] for sample_id in shard if sample_id in there]:
        stored = load_latents(study, old)
        shard |= {s.id: row.clone() for s, row in zip(old, stored, strict=True)}
    new = [i for i, (_, sample) in enumerate(batch) if sample.id not in there]
    images = [Image.fromarray(pixels[i].numpy()) for i in new]
    study.add_samples([batch[i][1] for i in new], images, shard)
