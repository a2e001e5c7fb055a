"""Do the intervals and the p-value of an evaluation hold? Simulated images that hang together.

python benchmarks/intervals.py [--studies N]: for several numbers of prompts, images and shares,
how often an interval covers the truth and how often a test at 0.05 gives a false alarm; beside
ours, what takes images as independent, and a BCa bootstrap over prompts.
"""

import argparse
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from scipy import stats

from sayso.base.bootstrap import Interval
from sayso.metrics import quality as metrics


class Setting(NamedTuple):
    """Prompts, images of each, the share before and after, and how alike images of a prompt are.

    `alike` is the correlation of two images of one prompt, in (0, 1).
    """

    prompts: int
    images: int
    before: float
    after: float
    alike: float = 0.3


SETTINGS = [
    Setting(prompts, images, *shares)
    for prompts in (16, 64)
    for images in (4, 8)
    for shares in ((0.15, 0.15), (0.15, 0.35), (0.5, 0.5), (0.5, 0.65))
]


def draw(setting: Setting, share: float, rng: np.random.Generator) -> ndarray:
    """Whether each image is true [prompts * images]; each prompt has a chance of its own."""
    spread = (1 - setting.alike) / setting.alike
    chances = rng.beta(share * spread, (1 - share) * spread, setting.prompts)
    return (rng.random((setting.prompts, setting.images)) < chances[:, None]).ravel()


def prompts_of(setting: Setting) -> list[str]:
    """The prompt of each image."""
    return np.repeat(np.arange(setting.prompts), setting.images).astype(str).tolist()


def covers(interval: Interval, truth: float) -> bool:
    """Whether the truth lies in the interval; one without limits says nothing and covers it."""
    return not (truth < interval.low or truth > interval.high)


def ours(setting: Setting, rng: np.random.Generator) -> dict[str, bool]:
    """One simulated study: which intervals cover, and whether the test rejects."""
    ids = prompts_of(setting)
    before, after = (draw(setting, share, rng) for share in (setting.before, setting.after))
    difference = metrics.paired_difference(before, after, ids)
    p_value = metrics.sign_flip_test(metrics.changes_by_prompt(before, after, ids))
    return {
        "share": covers(metrics.share_over_prompts(before, ids), setting.before),
        "difference": covers(difference, setting.after - setting.before),
        "sign flip": p_value < 0.05,
    }


def others(setting: Setting, rng: np.random.Generator) -> dict[str, bool]:
    """The same with Wilson and McNemar over images, and a BCa bootstrap over prompts."""
    before, after = (draw(setting, share, rng) for share in (setting.before, setting.after))
    gained, lost = int((~before & after).sum()), int((before & ~after).sum())
    mcnemar = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    changes = (after.astype(float) - before).reshape(setting.prompts, -1).mean(1)
    return {
        "share (Wilson)": covers(metrics.wilson(int(before.sum()), len(before)), setting.before),
        "difference (BCa)": covers(_bca(changes, rng), setting.after - setting.before),
        "McNemar": mcnemar < 0.05,
    }


def _bca(changes: ndarray, rng: np.random.Generator) -> Interval:
    value = float(changes.mean())
    if np.ptp(changes) == 0:
        return Interval(value, value, value)
    found = stats.bootstrap(
        (changes,), np.mean, n_resamples=999, method="BCa", rng=rng, vectorized=True
    ).confidence_interval
    return Interval(value, found.low, found.high)


def rates(setting: Setting, studies: int, seed: int, *kinds) -> dict[str, float]:
    """How often each came true over many simulated studies."""
    rng = np.random.default_rng(seed)
    rows = [{k: v for kind in kinds for k, v in kind(setting, rng).items()} for _ in range(studies)]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def main() -> None:
    """Print a line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    print(f"{studies} simulated studies a line; images of a prompt correlate at 0.3")
    for setting in SETTINGS:
        found = rates(setting, studies, 0, ours, others)
        size = (
            f"{setting.prompts:3} prompts x {setting.images}, {setting.before} -> {setting.after}"
        )
        print(size, *(f"{name} {share:.3f}" for name, share in found.items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
