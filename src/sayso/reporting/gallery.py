"""The pictures of the report: which prompts are shown, and the images as data URLs."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from PIL import Image

from sayso.base.errors import UserError
from sayso.base.files import JsonObject
from sayso.base.types import CATEGORIES, Prompt, Sample, digest
from sayso.study.study import Study

CRISP_PX = 128
"""Images up to this width are kept without loss and shown in whole pixels."""
_LARGE_PX = 256


@dataclass(frozen=True, slots=True)
class Picture:
    """One image on the page: data URL, width in pixels, the judge's verdict and its reason."""

    url: str
    width_px: int
    true: bool | None
    why: str


@dataclass(frozen=True, slots=True)
class Row:
    """The images of one model for one prompt."""

    role: str
    pictures: list[Picture]

    @property
    def judged(self) -> int:
        """How many of the images are judged true or false."""
        return sum(picture.true is not None for picture in self.pictures)

    @property
    def right(self) -> int:
        """How many of the images are true."""
        return sum(picture.true is True for picture in self.pictures)


@dataclass(frozen=True, slots=True)
class Card:
    """One prompt: the same seeds before and after, and the best of n."""

    prompt: Prompt
    rows: list[Row]


def cards(
    study: Study, models: Mapping[str, str], scores: Sequence[JsonObject], most: int, columns: int
) -> list[Card]:
    """The prompts shown and their images.

    Prompts are drawn at random with the study's seed, equally from every group of seen and of
    unseen prompts, without a look at the images. "base" and "aligned" show the same seeds.

    Args:
        study: where the images are.
        models: role ("base", "aligned", "best_of_n") → model string; absent roles are left out.
        scores: the evaluation's line of every image.
        most: how many prompts at most.
        columns: how many images a row.
    """
    by_id = {row["id"]: row for row in scores}
    order = [role for role in ("base", "aligned", "best_of_n") if role in models]
    samples = study.samples()
    drawn = {
        role: _by_prompt((s for s in samples if s.model == models[role]), by_id) for role in order
    }
    shown = [p for p in study.prompts("test") if all(p.id in d for d in drawn.values())]
    return [
        Card(prompt, _rows(study, prompt, drawn, by_id, columns))
        for prompt in chosen(shown, study.info.seed, most)
    ]


def chosen(prompts: Iterable[Prompt], seed: int, most: int) -> list[Prompt]:
    """At most `most` prompts, at random by `seed`, taken in turn from each group of each split.

    The hardest of the paper's groups, the combinations, comes first.
    """
    ranks = {category: -i for i, category in enumerate(CATEGORIES)}

    def place(p: Prompt) -> tuple[int, str, str, str]:
        return ranks.get(p.category, 1), p.category, p.split, digest([seed, "shown", p.id])

    shuffled = sorted(prompts, key=place)
    groups = [list(g) for _, g in groupby(shuffled, key=lambda p: (p.category, p.split))]
    longest = max(map(len, groups), default=0)
    in_turn = [group[i] for i in range(longest) for group in groups if i < len(group)]
    return in_turn[:most]


def _by_prompt(samples: Iterable[Sample], scored: Mapping[str, object]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.id in scored:
            found.setdefault(sample.prompt_id, []).append(sample)
    return found


def _rows(
    study: Study,
    prompt: Prompt,
    drawn: Mapping[str, Mapping[str, list[Sample]]],
    scores: Mapping[str, JsonObject],
    columns: int,
) -> list[Row]:
    paired = [r for r in ("base", "aligned") if r in drawn]
    seeds = [{s.seed for s in drawn[role][prompt.id]} for role in paired]
    common = set.intersection(*seeds) if seeds else set()
    rows = []
    for role, by_prompt in drawn.items():
        samples = by_prompt[prompt.id]
        if role in paired:
            samples = [s for s in samples if s.seed in common]
        rows.append(Row(role, [_picture(study, s, scores[s.id]) for s in samples[:columns]]))
    return rows


def _picture(study: Study, sample: Sample, score: JsonObject) -> Picture:
    url, width_px = data_url(study, sample)
    why = score.get("why", score.get("saw", ""))  # "saw" in evaluations of earlier versions
    return Picture(url, width_px, score.get("true"), str(why))


def data_url(study: Study, sample: Sample) -> tuple[str, int]:
    """The image as a data URL and its width: small ones without loss, large ones made smaller."""
    try:
        image = study.image(sample)
    except UserError:
        return "", _LARGE_PX // 2
    crisp = image.width <= CRISP_PX
    if not crisp:
        image.thumbnail((_LARGE_PX, _LARGE_PX), Image.Resampling.LANCZOS)
    return webp_url(image, lossless=crisp), image.width


def webp_url(image: Image.Image, *, lossless: bool = False) -> str:
    """The image as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82, lossless=lossless, method=4)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/webp;base64,{content}"


def size_bytes(shown: Iterable[Card]) -> int:
    """How much the images add to the page."""
    return sum(len(p.url) for card in shown for row in card.rows for p in row.pictures)


def within(shown: list[Card], budget_bytes: int) -> list[Card]:
    """The first cards whose images fit the budget."""
    kept, used = [], 0
    for card in shown:
        used += size_bytes([card])
        if used > budget_bytes:
            break
        kept.append(card)
    return kept


def template_text(name: str) -> str:
    """A text file that lies beside this module."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
