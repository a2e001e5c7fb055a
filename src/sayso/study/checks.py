"""Whether the files of a study are there and whole, without decoding them."""

from collections.abc import Iterable
from pathlib import Path

from sayso.base.errors import UserError
from sayso.base.types import Sample
from sayso.study.study import Study

_HEAD = b"\x89PNG\r\n\x1a\n"
_TAIL = b"IEND\xaeB\x60\x82"


def refuse_damaged(study: Study, samples: Iterable[Sample]) -> None:
    """Look at picture and latents of each sample.

    Raises: UserError: naming the first file that is gone or cut short.
    """
    for sample in samples:
        path = study.path / sample.path
        if path.suffix == ".png" and not _whole_png(path):
            raise UserError(
                f"image {path} is missing or damaged; restore it, or delete it and its line in "
                "samples.jsonl and run the command again"
            )
    for shard in {sample.latents for sample in samples if sample.latents}:
        _refuse_damaged_shard(study.path / shard)


def check_feedback(study: Study) -> None:
    """Refuse ratings of images that are gone.

    Raises: UserError: naming the first rating whose sample has no record or no image file.
    """
    paths = {sample.id: sample.path for sample in study.samples()}
    for rating in study.feedback.ratings(excluded=True):
        path = paths.get(rating.sample_id)
        if path is None or not (study.path / path).is_file():
            what = f"{study.path / path}" if path else f"sample {rating.sample_id}"
            raise UserError(
                f"rating {rating.id} by {rating.rater} is for a missing image: {what}; restore it "
                "from a backup of the study"
            )


def _whole_png(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(len(_HEAD))
            file.seek(-len(_TAIL), 2)
            return head == _HEAD and file.read() == _TAIL
    except OSError:
        return False


def _refuse_damaged_shard(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"latents {path} are missing or damaged ({error}); restore the file, or delete its "
            "lines in samples.jsonl and run the command again"
        ) from None
