"""What names and identities are read off: the part of `Study` that they know."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from sayso.base.types import Sample
from sayso.study.info import StudyInfo
from sayso.study.run import Run


@runtime_checkable
class ReadableStudy(Protocol):
    """A study folder that can be read; `Study` is one and uses the modules that take one."""

    path: Path
    info: StudyInfo

    def samples(self) -> list[Sample]:
        """The records of all images, oldest first."""
        ...

    def runs(self, stage: str = "") -> list[Run]:
        """The runs there are, of one stage if named."""
        ...

    def find_run(self, name: str, stage: str = "") -> Run:
        """The existing run of that name, meant as one of the stage. Raises: UserError: if none."""
        ...
