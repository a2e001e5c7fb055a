"""Every judge found on disk keeps its contract, and the checks see judges that do not."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import synthetic as syn
from torch import Tensor

from sayso.base.plugins import plugin_names
from sayso.base.types import Prompt, Sample
from sayso.judges import Judge, Verdict, load_judge
from sayso.study.study import Study
from sayso.testing import check_judge

OPTIONS: dict[str, dict[str, Any]] = {
    "reward": {"judge_reward": "clip_score", "threshold": 0.2},
}
"""What a judge cannot do without."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study, truth = syn.make_study(tmp_path_factory.mktemp("judges") / "study", 2, 4, 2)
    syn.add_ratings(study, truth, simulated=False, which="test")
    return study


@pytest.fixture(scope="module")
def samples(study: Study) -> list[Sample]:
    test = {p.id for p in study.prompts("test")}
    return [s for s in study.samples() if s.prompt_id in test][:8]


@pytest.mark.parametrize("name", plugin_names("judge"))
def test_judge(name: str, study: Study, samples: list[Sample]) -> None:
    judge = load_judge(name)(**OPTIONS.get(name, {}))
    judge.prepare(study)
    check_judge(judge, study, samples)


@dataclass
class Broken(Judge):
    """True everywhere, but for what a test breaks."""

    certainty: float = 0.5
    true: Any = True
    lost: int = 0
    calls: list[int] = field(default_factory=list[int])
    forgets: bool = False
    looks_around: bool = False

    def verdicts(self, images: Tensor, prompts: Sequence[Prompt]) -> list[Verdict]:
        self.calls.append(len(images))
        true = self.true
        if self.forgets:
            true = len(self.calls) % 2 == 0
        if self.looks_around:
            true = len(images) > 1
        return [Verdict(true, self.certainty) for _ in images[self.lost :]]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({}, ""),
        ({"true": 1}, "must be a bool"),
        ({"forgets": True}, "must repeat"),
        ({"looks_around": True}, "depended on the other samples"),
        ({"certainty": 1.5}, "certainty must be in"),
        ({"certainty": float("nan")}, "certainty must be in"),
        ({"lost": 1}, "gave 7 verdicts on 8 images"),
    ],
)
def test_faults_are_seen(
    fault: dict[str, Any], said: str, study: Study, samples: list[Sample], tmp_path: Path
) -> None:
    if not said:
        return check_judge(Broken(), study, samples)
    with pytest.raises(Exception, match=said):
        check_judge(Broken(**fault), study, samples)
    return None
