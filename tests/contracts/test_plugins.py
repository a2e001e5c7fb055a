"""Every aligner and family found on disk keeps its contract."""

from pathlib import Path

import pytest

from sayso.aligners import load_aligner
from sayso.base.plugins import load_plugin, plugin_names
from sayso.base.types import Size
from sayso.families import Policy
from sayso.testing import check_aligner, check_family


@pytest.mark.parametrize("name", plugin_names("aligner"))
def test_aligner(name: str) -> None:
    check_aligner(load_aligner(name))


@pytest.mark.parametrize("name", plugin_names("family"))
def test_family(name: str, tmp_path: Path) -> None:
    kind = load_plugin("family", name, Policy)
    check_family(kind, kind.tiny(tmp_path / "tiny"), Size(48, 32))
