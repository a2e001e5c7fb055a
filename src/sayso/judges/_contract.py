"""Judge: says whether a prompt is true of an image, and why. Training never sees it.

A whole judge, for a file of one's own:

    @dataclass
    class Bright(Judge):
        least: float = 0.5

        def verdicts(self, images, prompts):
            means = images.mean(dim=(1, 2, 3)).tolist()
            return [Verdict(m > self.least, abs(m - self.least), f"mean {m:.2f}") for m in means]

Nothing here imports torch, so that the small install can list judges and ask people's.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sayso.base.errors import UserError
from sayso.base.hashes import folder_digest
from sayso.base.plugins import load_plugin, refuse_bad_options
from sayso.base.progress import progress
from sayso.base.types import Prompt, Sample, digest
from sayso.base.worlds import find_world
from sayso.study.identity import NotHereError, plugin_digest
from sayso.study.run import Run
from sayso.study.study import Study

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

BATCH_SIZE = 128
"""Images read at a time, at most."""


class Verdict(NamedTuple):
    """Whether the prompt is true of the image, how certain that is in [0, 1], and why in words."""

    true: bool
    certainty: float = 1.0
    why: str = ""


class Judge(ABC):
    """Reads images and says whether their prompts are true of them.

    A plug-in is one file with one subclass, a dataclass whose fields are its options; each has a
    default. It implements `verdicts`, and what else it needs of the methods below.
    """

    @property
    def title(self) -> str:
        """Who judged, as the report says it: "the share of images …, read by the world's judge"."""
        return f"judged by {type(self).__name__}"

    @property
    def caveat(self) -> str:
        """What a reader should know of its errors, in a sentence; "" for nothing."""
        return ""

    def canonical(self, study: Study) -> "Judge":  # noqa: ARG002 (most options name nothing)
        """The same judge with what its options name in the study's one form, and checked.

        Raises: UserError: if an option is missing, or names what is not there.
        """
        return self

    def understands(self, prompt: Prompt) -> bool:  # noqa: ARG002 (most judges read any text)
        """Whether it can judge images of this prompt; a prompt it does not is never shown to it."""
        return True

    def folders(self, study: Study) -> list[Path]:  # noqa: ARG002 (most load nothing)
        """The folders of the weights that `prepare` loads; a run records their hashes.

        Raises: UserError: if one is not on this machine.
        """
        return []

    def identity(self, study: Study) -> str:
        """A hash of what decides its verdicts beside its source and options: of its weights.

        Raises: UserError: if something that it needs is not on this machine.
        """
        return digest([folder_digest(folder) for folder in self.folders(study)])

    def prepare(  # noqa: B027 (a judge may have nothing to load)
        self, study: Study, device: "torch.device | str" = "cpu"
    ) -> None:
        """Load what judging needs; called once before the first verdict.

        Args:
            study: whose images will be judged.
            device: where to compute.
        """

    @abstractmethod
    def verdicts(
        self, images: "Float[Tensor, 'b 3 h w']", prompts: Sequence[Prompt]
    ) -> Sequence[Verdict | None]:
        """Judge each image, RGB in [0, 1], against its own prompt; None where it cannot tell."""

    def judge_samples(
        self, study: Study, samples: Sequence[Sample], prompts: Sequence[Prompt]
    ) -> list[Verdict | None]:
        """Judge stored samples against their prompts, in batches, in order.

        Overridden by judges that need no pixels.

        Raises: UserError: if an image is missing or damaged, or a verdict is none.
        """
        from sayso.data.clip import stacked

        left, found = iter(prompts), list[Verdict | None]()
        with progress("judging images", len(samples)) as advance:
            # imported images may have any shape
            for images in stacked((study.image(sample) for sample in samples), BATCH_SIZE):
                own = list(islice(left, len(images)))
                found += self._checked(self.verdicts(images, own), samples[len(found) :], len(own))
                advance(len(own))
        return found

    def _checked(
        self, verdicts: Sequence[Verdict | None], samples: Sequence[Sample], n: int
    ) -> list[Verdict | None]:
        """The verdicts on the first n of the samples, if they are verdicts."""
        name = type(self).__name__
        if len(verdicts) != n:
            raise UserError(f"judge {name} gave {len(verdicts)} verdicts on {n} images; fix it")
        for sample, verdict in zip(samples, verdicts, strict=False):
            if verdict is not None and not 0 <= verdict.certainty <= 1:
                raise UserError(
                    f"judge {name} gave certainty {verdict.certainty} for sample {sample.id}; "
                    "certainty must be in [0, 1]"
                )
        return list(verdicts)


def load_judge(name: str) -> type[Judge]:
    """The judge class called `name`, or of the user's own file if it ends in ".py".

    Raises: UserError: if there is none, it is no dataclass, or an option has no default.
    """
    kind = load_plugin("judge", name, Judge)
    refuse_bad_options("judge", kind)
    return kind


def named_judge(study: Study, name: str, judge: Judge | None = None) -> Judge:
    """`judge`, or without one the judge called `name` with its defaults; in canonical form.

    Raises: UserError: if there is none of that name, `judge` is another one, or an option is bad.
    """
    kind = load_judge(name)
    # a file is loaded anew each time, so its class is never the same object
    if judge is not None and type(judge).__name__ != kind.__name__:
        raise UserError(
            f"the judge given is a {type(judge).__name__}, but the config names {name}; name the "
            "given judge in the config, such as judge='people' or judge='./mine.py'"
        )
    return (judge or kind()).canonical(study)


def world_judge(study: Study) -> str:
    """The name of the judge that belongs to the study's world; "" if its model is of none."""
    world = find_world(study.info.base_model)
    return world.judge if world else ""


def judge_identities(study: Study, name: str, judge: Judge) -> dict[str, str]:
    """What decides the verdicts of a judge but its options: its source, and what it loads.

    Args:
        name: of the plug-in, or its file, which counts by content.
    Raises: UserError: as `Judge.identity`, or if the file does not exist.
    """
    return {"judge": _source(name), "judge's weights": judge.identity(study)}


def without_judge(identities: Mapping[str, str]) -> dict[str, str]:
    """The identities as evaluations recorded them that were made before judges had any."""
    return {name: found for name, found in identities.items() if not name.startswith("judge")}


def changed_judge(study: Study, evaluation: Run) -> list[str]:
    """The judge of a finished run of evaluate, if it is another under the same name now."""
    result = evaluation.result
    recorded, name = result.get("identities", {}), result.get("judge", "")
    if "judge" not in recorded:
        return []
    try:
        if recorded["judge"] != _source(name):
            return [name]
        judge = load_judge(name)(**evaluation.config.get("options", {}))
        now = judge_identities(study, name, judge)
    except (NotHereError, ModuleNotFoundError):
        return []
    except UserError:
        return [name]
    return [] if now.items() <= recorded.items() else [name]


def _source(name: str) -> str:
    return plugin_digest("judge", name) or name
