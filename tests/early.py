"""Copies of the study that the first release wrote; see fixtures/early_study/README.md."""

import shutil
from pathlib import Path

EARLY = Path(__file__).parent / "fixtures/early_study"


def early_study(folder: Path) -> Path:
    """A copy in `folder` that a test may go on with or damage; its study's path."""
    shutil.copytree(EARLY, folder, dirs_exist_ok=True)
    info = folder / "study/study.json"
    info.write_text(info.read_text().replace("/tmp/early", str(folder)))
    return folder / "study"
