"""What is measured of a model: the truth, rewards, blind sets, distances; image by image."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sayso.base.files import JsonObject
from sayso.base.types import Sample
from sayso.cli.league.ground import HELD_OUT, REWARD, Ground, run_line
from sayso.study.info import PromptChoice

RATERS = 9
"""Of each blind pair of sets, as in the paper."""


def scored(
    ground: Ground, samples: Sequence[Sample], which: PromptChoice, reward: str = REWARD
) -> list[JsonObject]:
    """A row for each image: whether it is true to its prompt, and its reward."""
    from sayso.base.devices import make_accelerator
    from sayso.judges import named_judge, world_judge
    from sayso.stages._scoring import score

    prompts = ground.prompts(which)
    judge = named_judge(ground.study, world_judge(ground.study))
    device = make_accelerator("no").device
    own = [prompts[s.prompt_id] for s in samples]
    rows = score(ground.study, samples, own, judge, reward, device)
    return [
        {key: value for key, value in asdict(row).items() if key not in ("model", "why", "clip")}
        for row in rows
    ]


def tested(ground: Ground, model: str) -> list[JsonObject]:
    """Draw the model's test images and score them."""
    if model != "base" and "@" not in model:
        run_line(
            f"generate {ground.where} --prompts test --per-prompt {ground.size.set_size} "
            f"--model {model}"
        )
    return scored(ground, ground.images(model, "test"), "test")


def validated(ground: Ground, model: str) -> list[JsonObject]:
    """Draw the model's validation images and score them with the held-out reward."""
    run_line(
        f"generate {ground.where} --prompts validation "
        f"--per-prompt {ground.size.validation_images} --model {model}"
    )
    return scored(ground, ground.images(model, "validation"), "validation", HELD_OUT)


def compared(ground: Ground, model: str) -> list[JsonObject]:
    """Blind comparisons of sets against the base: a row for each prompt and question."""
    from sayso.votes.counted import is_for
    from sayso.votes.item_votes import of_comparisons

    run_line(
        f"rate {ground.where} --simulated --task compare --prompts test "
        f"--set-size {ground.size.set_size} --left base --right {model} "
        f"--raters {RATERS} --overlap {RATERS}"
    )
    shown = {s.id for s in ground.images(model, "test")}
    votes = [
        vote
        for vote in ground.study.feedback.comparisons()
        if {vote.left_model, vote.right_model} == {"base", model}
        and is_for(vote, "vote")
        and shown & {*vote.left_ids, *vote.right_ids}
    ]
    counts: dict[tuple[str, str], Counter[str]] = {}
    for pair, found in of_comparisons(votes).items():
        for vote in found:
            counts.setdefault((pair.question, vote.prompt), Counter())[vote.value] += 1
    return [
        {
            "question": question, "prompt_id": prompt, "win": n["first"], "tie": n["tie"],
            "lose": n["second"],
        }
        for (question, prompt), n in counts.items()
    ]  # fmt: skip


def distances(ground: Ground, model: str) -> dict[str, Any]:
    """Fréchet distance over the base's, and diversity, on captions of pre-training images."""
    from sayso.data.features import fidelity

    if not ground.size.fidelity:
        return {"skipped": "a league of this size has no fidelity prompts"}
    run_line(f"generate {ground.where} --prompts fidelity --per-prompt 1 --model {model}")
    drawn = {name: ground.images(name, "fidelity") for name in dict.fromkeys(("base", model))}
    found = fidelity(ground.study, model, drawn, ground.study.info.sampler)
    return {k: v for k, v in found.items() if k in ("base", "aligned", "ratio", "n", "skipped")}


def distance_to_base(ground: Ground, model: str) -> float:
    """Mean squared difference of the model's and the base's predictions, without guidance.

    On the model's own test images, each noised at a time of its own: up to weights of the times
    the KL divergence of the model's way of drawing from the base's.
    """
    import torch

    from sayso.base.devices import make_accelerator
    from sayso.data.latents import SampleLatents
    from sayso.families._loading import load_policy
    from sayso.training.objective import prediction_distance

    device, study = make_accelerator("no").device, ground.study
    samples, prompts = ground.images(model, "test"), ground.prompts("test")
    base = load_policy(study, "base", device, parts=["network", "text"])
    tuned = load_policy(study, model, device, parts=["network"])
    latents, found = SampleLatents(study, samples), []
    rng = torch.Generator().manual_seed(study.info.seed)
    t = base.draw_t(len(samples), rng, study.info.sampler)
    with torch.no_grad():
        for rows in torch.arange(len(samples)).split(64):
            texts = [prompts[samples[i].prompt_id].text for i in rows.tolist()]
            cond = base.encode_prompts(texts)
            cond = base.with_sampler(cond, study.info.sampler)
            x = latents[rows].float().to(device)
            noise, times = torch.randn(x.shape, generator=rng).to(device), t[rows].to(device)
            inputs = base.add_noise(x, noise, times), times, cond
            found.append(prediction_distance(tuned.predict(*inputs), base.predict(*inputs)))
    return float(torch.cat(found).mean())
