"""How much of a gradient is signal: what batches of rated images agree on, for several losses.

    python benchmarks/gradient_signal.py STUDY [--batches 32]

STUDY has images of its base that simulated raters rated, such as one of the demo. Of each loss
the gradient of some batches of 64 rows is taken at the base. The mean product of two batches'
gradients is the squared length of what they agree on, their mean squared length is that and noise.
Nothing is trained, and nothing is written.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sayso.aligners import Work, prompt_means, stratified
from sayso.data.latents import SampleLatents
from sayso.data.rows import make_rows
from sayso.families._loading import load_policy
from sayso.stages._training_data import samples_of
from sayso.study.study import Study

ROWS, AT_ONCE = 64, 32


class Chosen(NamedTuple):
    """Rows of a batch, what the error of each counts, and how many share t and noise."""

    rows: Tensor
    counts: Tensor
    unit: int = 1


def losses(label: Tensor, text: Tensor) -> dict[str, Callable[[torch.Generator], Chosen]]:
    """Of each loss at the start, the rows of a batch: there they are signed denoising errors."""
    good, bad = (label > 0.5).nonzero()[:, 0], (label < 0.5).nonzero()[:, 0]
    pairs = torch.tensor([(g, b) for g in good for b in bad[text[bad] == text[g]]])
    of_prompt = torch.bincount(text[pairs[:, 0]])[text[pairs[:, 0]]].float()
    centred, alike = label - prompt_means(label, text), torch.ones(len(label))

    def rated(counts: Tensor) -> Callable[[torch.Generator], Chosen]:
        def chosen(generator: torch.Generator) -> Chosen:
            rows = stratified(alike, ROWS, generator)
            return Chosen(rows, counts[rows])

        return chosen

    def imitating(generator: torch.Generator) -> Chosen:
        return Chosen(good[stratified(torch.ones(len(good)), ROWS, generator)], torch.ones(ROWS))

    def paired(unit: int) -> Callable[[torch.Generator], Chosen]:
        def chosen(generator: torch.Generator) -> Chosen:
            rows = pairs[stratified(1 / of_prompt, ROWS // 2, generator)].flatten()
            return Chosen(rows, torch.tensor([1.0, -1.0]).repeat(ROWS // 2), unit)

        return chosen

    return {
        "good images only": imitating,
        "labels": rated(2 * label - 1),
        "labels, centred": rated(centred),
        "pairs, t and noise apart": paired(1),
        "pairs, t and noise shared": paired(2),
    }


def gradient(work: Work, chosen: Chosen, generator: torch.Generator) -> Tensor:
    """Of the mean of counts · error / √error, where the root has no gradient, as in nft."""
    batch = work.denoising_batch(chosen.rows, generator, unit=chosen.unit, counts=chosen.counts)
    parameters, total = [*work.policy.trainable().values()], torch.zeros(())
    for at in range(0, ROWS, AT_ONCE):
        part = batch.rows(slice(at, at + AT_ONCE))
        error = work.error(part)
        loss = (part["counts"] * error / error.detach().sqrt()).sum() / ROWS
        total = total + torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    return total


def signal_share(products: Tensor) -> tuple[float, float]:
    """Which part of the squared length gradients agree on, and its standard error by the jackknife.

    Args:
        products: of each two gradients, [n, n].
    """

    def share(of: Tensor) -> float:
        n, own = len(of), of.diag().sum()
        return float((of.sum() - own) / (n - 1) / own)

    n = len(products)
    without = torch.tensor([
        share(products[rest][:, rest]) for rest in (torch.arange(n) != i for i in range(n))
    ])  # fmt: skip
    return share(products), float((without.var(correction=0) * (n - 1)).sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--batches", type=int, default=32)
    options = parser.parse_args()
    study = Study.open(options.study)
    images = samples_of(study, ["base"], "share", simulated=True)
    known = [i for i, label in enumerate(images.labels) if not math.isnan(label)]
    samples, texts = [images.samples[i] for i in known], [images.texts[i] for i in known]
    labels = [images.labels[i] for i in known]
    policy = load_policy(study, "base", torch.device("cpu"))
    latents, unscored = SampleLatents(study, samples), [math.nan] * len(known)
    rows = make_rows(policy, (latents, texts), labels, unscored)
    work = Work(policy, rows, ROWS, 1, 0, sampler=study.info.sampler)
    print(f"{len(texts)} rated images, {rows.label.mean():.0%} good")
    imitation = None
    for name, choose in losses(rows.label, rows.text).items():
        generators = [torch.Generator().manual_seed(seed) for seed in range(options.batches)]
        found = torch.stack([gradient(work, choose(g), g) for g in generators])
        share, error = signal_share(found @ found.T)
        imitation = found.mean(0) if imitation is None else imitation
        along = cosine_similarity(found.mean(0), imitation, dim=0)
        print(
            f"{name:26} signal {share:6.1%} ± {error:.1%}, along good images {along:5.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
