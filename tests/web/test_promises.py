"""Every test that docs/rating.md names exists."""

import re
from pathlib import Path

ROW = r"`(test_\w+\.py)::(\w+)`"
ROOT = Path(__file__).parent.parent.parent


def test_promises_name_tests_that_exist():
    page = (ROOT / "docs/rating.md").read_text()
    promises = page.split("## Promises")[1].split("\n## ")[0]
    assert re.findall(r"^(\d+)\.", promises, flags=re.MULTILINE) == [str(i) for i in range(1, 11)]
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", promises)
    assert len(named) >= 12
    named += [(f"tests/web/{path}", name) for path, name in re.findall(ROW, page)]
    assert len(named) >= 36
    for path, name in named:
        text = (ROOT / path).read_text()
        assert not name or re.search(rf"^(?:def |class )?{name}\b", text, flags=re.MULTILINE), name
