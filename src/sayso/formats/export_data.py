"""What a format writes from: votes, labels, pairs and images of one study and kind of rater."""

import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from sayso.base.errors import UserError
from sayso.base.types import Prompt, Sample
from sayso.formats.labels import count_labels
from sayso.formats.options import ExportOptions
from sayso.formats.pairs import Pair, compared, from_ratings, left_out
from sayso.formats.snapshot import Pseudonyms, read_votes, write_votes
from sayso.study.generations import Generations
from sayso.study.study import Study
from sayso.votes.labels import RatingCounts

JPEG_QUALITY = 95


class Rated(NamedTuple):
    """One image with good or bad ratings on the question of the export."""

    sample: Sample
    prompt: Prompt
    counts: RatingCounts


class ExportData:
    """A snapshot of a study's votes, and the images they are about.

    Args:
        votes: where the snapshot is written.
        simulated: whose votes: of programs (True) or of people (False), never both.
    Raises: UserError: if a vote's image, record or prompt is missing.
    """

    def __init__(self, study: Study, options: ExportOptions, votes: Path, simulated: bool) -> None:
        self.study, self.options, self.votes, self.simulated = study, options, votes, simulated
        self.prompts = {p.id: p for p in study.prompts()}
        self.left_out: dict[str, int] = {}
        """What the format cannot hold: reason → votes or images."""
        self._generations = Generations(study)
        self._all_samples = self._generations.by_id
        stream = study.feedback.stream(simulated)
        key = Pseudonyms(study.export_key())
        write_votes(votes, stream, self._all_samples, self.prompts, key)
        self._refuse_missing_images()

    def _refuse_missing_images(self) -> None:
        for sample in self.samples:
            if not (self.study.path / sample.path).is_file():
                raise UserError(
                    f"votes are about image {self.study.path / sample.path}, which is missing; "
                    "restore it from a backup of the study (nothing was exported)"
                )

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many there are: votes by kind, live ones, those that do not count, raters, images.

        Only votes that count go into other formats than ours.
        """
        raters: set[str] = set()
        prompts: set[str] = set()
        kinds = {"rating": 0, "comparison": 0}
        flags = {"live": 0, "attention": 0, "adjudication": 0, "excluded": 0}
        for row in read_votes(self.votes, ["kind", "rater", "prompt_id", *flags]):
            raters.add(row["rater"])
            prompts.add(row["prompt_id"])
            kinds[row["kind"]] += 1
            flags = {name: n + bool(row[name]) for name, n in flags.items()}
        return {
            "votes": sum(kinds.values()),
            "ratings": kinds["rating"],
            "comparisons": kinds["comparison"],
            **flags,
            "raters": len(raters),
            "images": len(self.samples),
            "prompts": len(prompts),
        }

    @cached_property
    def samples(self) -> Sequence[Sample]:
        """The images that votes are about, in the study's order."""
        voted = {i for row in read_votes(self.votes, ["item_ids"]) for i in row["item_ids"]}
        return [sample for sample in self._all_samples.values() if sample.id in voted]

    def sample(self, sample_id: str) -> Sample:
        return self._all_samples[sample_id]

    def split(self, prompt: Prompt) -> str:
        """The split in others' words: "train", or "test" for all prompts held out here."""
        return "train" if prompt.split == "train" else "test"

    def model_name(self, sample: Sample) -> str:
        """The model that drew an image, an earlier one of its name so; the base by its own name."""
        label = self._generations.label(sample)
        return self.base_model + label.removeprefix("base") if sample.model == "base" else label

    @property
    def base_model(self) -> str:
        """The base model's name; of a folder only its last part, for a path tells who owns it."""
        name = self.study.info.base_model
        return Path(name).name if Path(name).is_absolute() else name

    # labels

    @cached_property
    def labels(self) -> dict[tuple[str, str], RatingCounts]:
        """Image and question → what their votes come to."""
        return count_labels(self.votes)

    def _asked(self) -> dict[str, RatingCounts]:
        """Sample id → what the votes on the question of the options come to."""
        asked = self.options.question
        return {name: c for (name, question), c in self.labels.items() if question == asked}

    def rated(self) -> Iterator[Rated]:
        """The images with good or bad ratings on the question, in the study's order.

        Raises: UserError: if there are none.
        """
        counts = self._asked()
        rated = {i: c for i, c in counts.items() if c.share is not None}
        self.leave_out("images_with_skips_only", len(counts) - len(rated))
        if not rated:
            raise self._nothing("no image is rated good or bad")
        for sample in self.samples:
            if sample.id in rated:
                yield Rated(sample, self.prompts[sample.prompt_id], rated[sample.id])

    def kept(self) -> Iterator[Rated]:
        """`rated`, or of these only what most raters call good, as the option `keep` says."""
        everything = list(self.rated())
        kept = [r for r in everything if self.options.keep == "all" or r.counts.value == "good"]
        self.leave_out("images_not_good", len(everything) - len(kept))
        if not kept:
            raise self._nothing("most raters call no image good")
        yield from kept

    def facts(self, rated: Rated) -> dict[str, object]:
        """What is known of a rated image beside its text; the same fields for every image."""
        sample, prompt, counts = rated
        return {
            "p_good": counts.share,
            "n_good": counts.good,
            "n_bad": counts.bad,
            "n_skip": counts.skip,
            "sample_id": sample.id,
            "prompt_id": prompt.id,
            "category": prompt.category,
            "model": self.model_name(sample),
            "seed": sample.seed,
        }

    # pairs

    def pairs(self) -> Iterator[Pair]:
        """Preferences between two images on the question, from where the option `pairs` says.

        Raises: UserError: if there are none.
        """
        question, source = self.options.question, self.pair_source
        if source == "comparisons":
            found = compared(self.votes, question)
            for reason, n in left_out(self.votes, question).items():
                self.leave_out(reason, n)
        else:
            counts = self._asked()
            found = from_ratings(counts, self._all_samples, self.options.pairs_per_prompt)
        first = next(found, None)
        if first is None:
            raise self._nothing(
                f"no comparison of two single images was decided{self._but_left_out()}"
                if source == "comparisons"
                else "no prompt has both an image that most raters call good and one they call bad"
            )
        yield first
        yield from found

    @cached_property
    def pair_source(self) -> str:
        """Where pairs come from: "comparisons" or "ratings"."""
        if self.options.pairs != "auto":
            return self.options.pairs
        single = next(compared(self.votes, self.options.question), None)
        return "ratings" if single is None else "comparisons"

    def leave_out(self, reason: str, n: int) -> None:
        """Note for the manifest what the format cannot hold."""
        if n:
            self.left_out[reason] = n

    def _but_left_out(self) -> str:
        named = [f"{n} {reason.replace('_', ' ')}" for reason, n in self.left_out.items()]
        return f" ({', '.join(named)})" if named else ""

    def _nothing(self, reason: str) -> UserError:
        who = "simulated raters" if self.simulated else "people"
        return UserError(
            f"nothing to export: on {self.options.question}, {reason} (votes of {who}); collect "
            "more with sayso rate, or choose another --question, --raters or --format"
        )

    # images

    @property
    def extension(self) -> str:
        return self.options.image_format

    def picture(self, sample: Sample) -> bytes:
        """The image's file as it is, or encoded anew as the option `image_format` says.

        Raises: UserError: if it is missing or damaged.
        """
        if self.options.image_format == "png":
            return self.study.image_bytes(sample)
        buffer = io.BytesIO()
        self.study.image(sample).save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()
