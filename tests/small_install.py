"""Run commands as the small install would: what its extras bring cannot be found.

    python tests/small_install.py '[["demo", "my-study"], ["report", "my-study"]]'

After each command its exit code is printed on a line of its own.
"""

import json
import sys
from typing import Any

from sayso.base.extras import EXTRAS

HIDDEN = {*(m for modules in EXTRAS.values() for m in modules), "tokenizers", "huggingface_hub",
          "torchvision"}  # fmt: skip


class _Without:
    """A finder that does not find what is hidden."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        hidden = name.partition(".")[0] in HIDDEN
        return None if hidden else self._finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def main() -> None:
    sys.meta_path[:] = [_Without(finder) for finder in sys.meta_path]
    from sayso.cli import commands as cli

    for command in json.loads(sys.argv[1]):
        try:
            cli.main(command)
            code: object = 0
        except SystemExit as stop:
            code = stop.code
        sys.stdout.flush()
        print(f"== {code}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
