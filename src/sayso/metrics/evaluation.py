"""What an evaluation says, computed from one line per image: shares, paired tests, reward quality.

Pure functions; no model, no file. A number that cannot be computed is `{"skipped": reason}`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sayso.base.types import CATEGORIES
from sayso.metrics import quality as metrics

Section = dict[str, Any]
METHODS = {
    "share": "Wilson's interval with the effective number of images, over prompts",
    "difference": "t interval over prompts",
    "p_value": "exact sign flip over prompts",
}
"""How the intervals and p-values of an evaluation were computed; result.json keeps it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One test image with all that is known of it.

    `true`: the prompt is true of the image (None: nobody said); `certainty` of that in [0, 1];
    `why`: the judge's reason, in words.
    """

    id: str
    model: str
    prompt_id: str
    seed: int
    split: str
    category: str
    true: bool | None = None
    certainty: float | None = None
    why: str = ""
    reward: float | None = None
    clip: float | None = None


def skipped(reason: str) -> Section:
    """The place of a number that is not there."""
    return {"skipped": reason}


def groups(rows: Iterable[Scored]) -> dict[str, Callable[[Scored], bool]]:
    """The parts that are reported: each category, seen, unseen, all, and category/split cells."""
    present = {row.category for row in rows}
    order = [c for c in CATEGORIES if c in present] + sorted(present - set(CATEGORIES))
    parts: dict[str, Callable[[Scored], bool]] = {c: _is("category", c) for c in order}
    parts |= {s: _is("split", s) for s in ("seen", "unseen")}
    parts["all"] = lambda _: True
    for c in order:
        for s in ("seen", "unseen"):
            parts[f"{c}/{s}"] = lambda row, c=c, s=s: row.category == c and row.split == s
    return parts


def _is(field: str, value: str) -> Callable[[Scored], bool]:
    return lambda row: getattr(row, field) == value


def pair_up(base: Sequence[Scored], aligned: Sequence[Scored]) -> tuple[list[Scored], list[Scored]]:
    """The images of both models with the same prompt and the same seed, in the same order."""
    other = {(row.prompt_id, row.seed): row for row in aligned}
    pairs = [(b, other[key]) for b in base if (key := (b.prompt_id, b.seed)) in other]
    return [b for b, _ in pairs], [a for _, a in pairs]


# alignment


def shares(rows: Sequence[Scored]) -> Section:
    """The share of true images by group, with an interval over prompts and both numbers."""
    known = [row for row in rows if row.true is not None]
    if not known:
        return skipped("no image has a verdict: no judge, and no ratings of these images")
    parts = {name: [r for r in known if wanted(r)] for name, wanted in groups(known).items()}
    return {name: _share(part) for name, part in parts.items() if part}


def _share(rows: Sequence[Scored]) -> Section:
    prompts = [row.prompt_id for row in rows]
    found = metrics.share_over_prompts(np.array([bool(row.true) for row in rows]), prompts)
    return found.plain() | {"n": len(rows), "n_prompts": len(set(prompts))}


def paired(base: Sequence[Scored], aligned: Sequence[Scored]) -> Section:
    """What changed from base to aligned on the same prompts and seeds, by group.

    The exact p-value of a sign flip over prompts, and the difference of the shares with an
    interval over prompts.
    """
    both = [(b, a) for b, a in zip(base, aligned, strict=True) if None not in (b.true, a.true)]
    if not both:
        return skipped("no prompt and seed has a verdict for both models")
    parts = groups([b for b, _ in both])
    found = {name: [pair for pair in both if wanted(pair[0])] for name, wanted in parts.items()}
    return {name: _change(pairs) for name, pairs in found.items() if pairs}


def _change(pairs: Sequence[tuple[Scored, Scored]]) -> Section:
    before = np.array([bool(b.true) for b, _ in pairs])
    after = np.array([bool(a.true) for _, a in pairs])
    prompts = [b.prompt_id for b, _ in pairs]
    return {
        "n": len(pairs),
        "n_prompts": len(set(prompts)),
        "fixed": int((~before & after).sum()),
        "broken": int((before & ~after).sum()),
        "stayed_true": int((before & after).sum()),
        "stayed_false": int((~before & ~after).sum()),
        "p_value": metrics.sign_flip_test(metrics.changes_by_prompt(before, after, prompts)),
        "difference": _difference(before, after, prompts),
    }


def _difference(before: np.ndarray, after: np.ndarray, prompts: Sequence[str]) -> Section:
    if len(set(prompts)) < 2:
        return skipped(f"{len(set(prompts))} prompt; an interval over prompts needs at least 2")
    return dict(metrics.paired_difference(before, after, prompts).plain())


# rewards


def mean_scores(rows: Sequence[Scored]) -> Section:
    """Mean learned reward and mean CLIP similarity, with the spread over images."""
    return {
        "reward": _mean([row.reward for row in rows]),
        "clip_score": _mean([row.clip for row in rows]),
        "n": len(rows),
    }


def _mean(values: Sequence[float | None]) -> Section:
    known = np.array([v for v in values if v is not None])
    if not len(known):
        return skipped("no scores")
    return {"mean": float(known.mean()), "deviation": float(known.std()), "n": len(known)}


def reward_quality(rows: Sequence[Scored], calibrated: bool) -> Section:
    """How well the learned reward and CLIP similarity tell true from false images, by split.

    Args:
        rows: images of the base model that no reward selected.
        calibrated: the reward lies in [0, 1], so that Brier score and calibration have a meaning.
    """
    known = [row for row in rows if None not in (row.true, row.reward, row.clip)]
    if not known:
        return skipped("no image of the base model has both a reward and a verdict")
    splits = {
        "seen": [r for r in known if r.split == "seen"],
        "unseen": [r for r in known if r.split == "unseen"],
        "all": known,
    }
    return {name: _quality(part, calibrated) for name, part in splits.items() if part}


def _quality(rows: Sequence[Scored], calibrated: bool) -> Section:
    good = np.array([bool(row.true) for row in rows])
    reward = np.array([row.reward for row in rows], dtype=float)
    clip = np.array([row.clip for row in rows], dtype=float)
    prompts = [row.prompt_id for row in rows]
    found: Section = {"n": len(rows), "n_true": int(good.sum())}
    found["pair_accuracy"], found["n_pairs"] = _pairs(good, reward, prompts)
    found["clip_pair_accuracy"] = _pairs(good, clip, prompts)[0]
    found |= {"auc": _auc(good, reward), "clip_auc": _auc(good, clip)}
    if not calibrated:
        return found | {"calibration": skipped("the reward is not a probability in [0, 1]")}
    table = metrics.calibration(good.astype(float), reward)
    return found | {
        "accuracy": metrics.accuracy(good, reward),
        "brier": metrics.brier(good.astype(float), reward),
        "calibration_error": metrics.calibration_error(table),
        "calibration": _with_limits(table, good, reward, prompts),
    }


def _pairs(
    good: np.ndarray, scores: np.ndarray, prompts: Sequence[str]
) -> tuple[float | Section, int]:
    share, n = metrics.pair_accuracy(good, scores, prompts)
    if not n:
        return skipped("no prompt has both a true and a false image"), 0
    return share, n


def _auc(good: np.ndarray, scores: np.ndarray) -> float | Section:
    if good.all() or not good.any():
        return skipped(f"{int(good.sum())} of {len(good)} images are true; an AUC needs both kinds")
    return metrics.roc_auc(good, scores)


def _with_limits(
    table: Sequence[metrics.CalibrationBin],
    good: np.ndarray,
    reward: np.ndarray,
    prompts: Sequence[str],
) -> list[Section]:
    """The rows of the calibration table, each share with its interval over prompts."""
    place, ids = metrics.bin_of(reward, len(table)), np.array(prompts)
    return [
        asdict(row) | (_limits(good[place == i], ids[place == i].tolist()) if row.n else {})
        for i, row in enumerate(table)
    ]


def _limits(good: np.ndarray, prompts: Sequence[str]) -> Section:
    found = metrics.share_over_prompts(good, prompts).plain()
    return {"label_low": found["low"], "label_high": found["high"]}


def optimisation(scores: Mapping[str, Section], change: Section) -> Section:
    """Whether the reward rose faster than the truth: a sign that training exploits its errors.

    Args:
        scores: role → `mean_scores` of the paired images ("base", "aligned").
        change: `paired` of the same images.
    """
    means = [scores[role]["reward"].get("mean") for role in ("base", "aligned")]
    overall = change.get("all", {})
    gain = overall.get("difference", {}).get("value")
    if None in means or gain is None:
        return skipped("needs a reward and a verdict on both models")
    reward_gain = means[1] - means[0]
    high = overall["difference"]["high"]
    return {
        "reward_gain": reward_gain,
        "truth_gain": gain,
        "n": overall["n"],
        "suspect": bool(reward_gain > 0 and high is not None and high < 0),
    }
