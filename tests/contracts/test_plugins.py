"""Every aligner and family found on disk keeps its contract."""

from pathlib import Path
from typing import Any

import pytest

from sayso.aligners import load_aligner
from sayso.base.plugins import load_plugin, plugin_names
from sayso.base.types import Size
from sayso.families import Policy
from sayso.testing import check_aligner, check_family

ROLLOUT = {"images": 8, "group_size": 4}
OTHERWISE: list[tuple[str, dict[str, Any]]] = [
    ("awm", {"groups": True, "times_per_image": 2, **ROLLOUT}),
    ("direct_align", {"source": "rollouts"}),
    ("direct_align", {"source": "rollouts", "last_steps": 2}),
    ("grpo", {"trust": "dppo", "scale": "group", "steps_per_image": 2, **ROLLOUT}),
    ("nft", {"score": "rollouts", "times_per_image": 2, **ROLLOUT}),
]
"""Options with which an aligner makes other rows, or has another loss."""


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in plugin_names("aligner")), *OTHERWISE]
)
def test_aligner(name: str, options: dict[str, Any]) -> None:
    check_aligner(load_aligner(name), **options)


@pytest.mark.parametrize("name", plugin_names("family"))
def test_family(name: str, tmp_path: Path) -> None:
    kind = load_plugin("family", name, Policy)
    check_family(kind, kind.tiny(tmp_path / "tiny"), Size(48, 32))
