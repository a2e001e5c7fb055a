"""Intervals and p-values hold when images of one prompt are alike: a simulated clustered null."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from intervals import Setting, others, ours, rates

STUDIES = 1500  # the standard error of a share of 95 % is then 0.6 points


@pytest.mark.parametrize(("images", "share"), [(8, 0.15), (8, 0.5), (4, 0.5)])
def test_no_more_false_alarms_and_no_less_coverage_than_promised(images: int, share: float) -> None:
    found = rates(Setting(64, images, share, share), STUDIES, 1, ours)
    assert 0.03 <= found["sign flip"] <= 0.07
    assert 0.93 <= found["share"] <= 0.97
    assert 0.93 <= found["difference"] <= 0.97


@pytest.mark.parametrize("images", [4, 8])
def test_coverage_with_an_effect_and_few_prompts(images: int) -> None:
    found = rates(Setting(16, images, 0.4, 0.55), STUDIES, 2, ours)
    assert 0.93 <= found["share"] <= 0.97
    assert 0.93 <= found["difference"] <= 0.97


def test_images_taken_as_independent_would_fail() -> None:
    """What the tests above can see: the methods that ignore prompts miss by far."""
    found = rates(Setting(64, 8, 0.5, 0.5), 200, 3, others)
    assert found["McNemar"] > 0.14
    assert found["share (Wilson)"] < 0.85
