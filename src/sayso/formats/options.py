"""What an export may be asked for."""

from dataclasses import dataclass
from typing import Literal

from sayso.base.errors import UserError
from sayso.base.types import Question


@dataclass(frozen=True)
class ExportOptions:
    """What goes into a table; each format reads the options that concern it."""

    question: Question = "alignment"
    """The question whose votes become labels and pairs."""
    pairs: Literal["auto", "comparisons", "ratings"] = "auto"
    """Formats with pairs: where the pairs come from. comparisons: votes on two single images;
    ratings: good over bad for the same prompt, by the majority of raters; auto: comparisons if
    there are any, otherwise ratings."""
    pairs_per_prompt: int = 0
    """Pairs from ratings: maximum number per prompt, chosen by a hash; 0 = all."""
    keep: Literal["all", "good"] = "all"
    """imagefolder and webdataset: all rated images, or only those that most raters call good."""
    image_format: Literal["png", "jpg"] = "png"
    """png: images as they are; jpg: re-encoded as JPEG with quality 95, which loses detail."""

    def check(self) -> None:
        """Raises: UserError: naming the first option that is out of range."""
        if self.pairs_per_prompt < 0:
            raise UserError(
                f"pairs_per_prompt {self.pairs_per_prompt} is too small; give 0 or more"
            )
