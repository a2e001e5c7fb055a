"""The rules of docs/architecture.md that can be read off the source, without importing it."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from sayso.base.plugins import FOLDERS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "sayso"
ORDER = (
    "base",
    "metrics votes prompts",
    "feedback study",
    "families",
    "data",
    "rewards judges",
    "aligners",
    "training",
    "reporting formats web",
    "tinyworld",
    "stages",
    "cli",
)
"""The rooms, lowest first: a module imports from its own line and from those before it."""
TOP = ("", "__main__", "testing")
"""What may import everything and is imported by nothing of the package."""
NAMES_THE_TINY_WORLD = ("tinyworld/", "judges/tinyworld.py", "base/worlds.py", "cli/")
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 50
FROZEN = "feedback/migrations/versions/"
"""Tables as they were, which nobody edits any more."""

Graph = Mapping[str, set[str]]


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports_of(tree: ast.Module, known: Iterable[str]) -> set[str]:
    """The modules of the package that a module imports: at its top, in functions, for types."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {module for name in names for module in [imported(name, known)] if module}
    return found


def imported(name: str, known: Iterable[str]) -> str | None:
    """`sayso.base.types.Prompt` → `sayso.base.types`, the longest name that is a module."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


GRAPH: Graph = {name: imports_of(tree, MODULES) for name, tree in TREES.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def circle(graph: Graph) -> list[str]:
    """One circle of the graph, [] if there is none."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def level(room: str) -> int:
    return next(i for i, rooms in enumerate(ORDER) if room in rooms.split())


# the graph


def test_the_reader_of_imports_sees_all_of_them() -> None:
    tree = ast.parse(
        "from typing import TYPE_CHECKING\nimport sayso.b\nif TYPE_CHECKING:\n"
        "    from sayso.c import X\ndef f():\n    from sayso import d\n"
    )
    assert imports_of(tree, {"sayso", "sayso.b", "sayso.c", "sayso.d"}) == {
        "sayso.b", "sayso.c", "sayso.d",
    }  # fmt: skip
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert not circle({"a": {"b", "c"}, "b": {"c"}})
    assert len(MODULES) > 100
    assert sum(map(len, GRAPH.values())) > 300


def test_no_circle_between_modules() -> None:
    assert circle(GRAPH) == []


def test_no_circle_between_rooms() -> None:
    rooms: dict[str, set[str]] = {}
    for module, needed in GRAPH.items():
        if room(module) not in TOP:
            others = {room(other) for other in needed} - {room(module)}
            rooms.setdefault(room(module), set()).update(others)
    assert circle(rooms) == []


def test_no_import_climbs() -> None:
    climbs = [
        f"{module} → {other}"
        for module, needed in GRAPH.items()
        for other in needed
        if room(module) not in TOP
        and (room(other) in TOP or level(room(other)) > level(room(module)))
    ]
    assert climbs == []


def test_every_room_has_its_place_and_the_map_shows_it() -> None:
    there = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert {name for rooms in ORDER for name in rooms.split()} == there - {"testing"}
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert " < ".join(ORDER) in re.sub(r"\s+", " ", page)


@pytest.mark.parametrize("room", ["stages", *(name.replace(".", "/") for name in FOLDERS.values())])
def test_stages_and_plugins_import_none_of_their_kind(room: str) -> None:
    """They share what begins with `_`, and the folder's contract."""
    inside = f"sayso.{room.replace('/', '.')}."
    own = {name for name in MODULES if name.startswith(inside) and "._" not in name}
    found = [f"{name} → {other}" for name in own for other in GRAPH[name] & own]
    assert found == []


# the rating app


def test_the_work_of_the_rating_app_knows_no_http() -> None:
    work = {name: tree for name, tree in TREES.items() if name.startswith("sayso.web.work.")}
    assert len(work) > 10
    for name, tree in work.items():
        above = {other for other in GRAPH[name] if other.startswith("sayso.web")} - set(work)
        assert above <= {"sayso.web.work"}, name
        http = {"fastapi", "starlette", "uvicorn", "jinja2", "itsdangerous"}
        assert not http & {package.partition(".")[0] for package in packages_of(tree)}, name


def packages_of(tree: ast.Module) -> Iterator[str]:
    """What a module imports, from wherever."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_routes_of_the_rating_app_are_functions_of_their_modules() -> None:
    def routes(nodes: Iterable[ast.AST]) -> list[str]:
        functions = (n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
        return [f.name for f in functions if any("router." in ast.unparse(d)
                for d in f.decorator_list)]  # fmt: skip

    trees = [tree for name, tree in TREES.items() if name.startswith("sayso.web.")]
    assert sum(len(routes(tree.body)) for tree in trees) > 25
    for tree in trees:
        assert routes(tree.body) == routes(ast.walk(tree))


# the files


def test_only_the_world_itself_names_the_tiny_world() -> None:
    named = [
        str(path.relative_to(SOURCE))
        for path in sorted(SOURCE.rglob("*"))
        if path.suffix in (".py", ".j2", ".html", ".js", ".css")
        and not str(path.relative_to(SOURCE)).startswith(NAMES_THE_TINY_WORLD)
        and re.search(r"tiny[\s_-]?world", path.read_text(), re.IGNORECASE)
    ]
    assert named == []


def test_files_are_short() -> None:
    suffixes = (".py", ".j2", ".html", ".js", ".css")
    lines = {
        str(path.relative_to(SOURCE)): len(path.read_text().splitlines())
        for path in SOURCE.rglob("*")
        if path.suffix in suffixes
    }
    long = {path: n for path, n in lines.items() if n > MOST_LINES_OF_A_FILE}
    assert long == {}


def functions() -> Iterator[tuple[str, int]]:
    """Every function of the package with its number of lines."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}.{node.name}", (node.end_lineno or 0) - node.lineno + 1


def test_functions_are_short() -> None:
    frozen = f"sayso.{FROZEN.replace('/', '.')}"
    long = {
        name: n
        for name, n in functions()
        if n > MOST_LINES_OF_A_FUNCTION and not name.startswith(frozen)
    }
    assert long == {}


# the plug-ins


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_a_plugin_folder_holds_its_contract_and_one_class_a_file(folder: str) -> None:
    path = SOURCE.joinpath(*folder.split("."))
    assert (path / "_contract.py").is_file()
    assert f"sayso.{folder}._contract" in GRAPH[f"sayso.{folder}"], "__init__ gives the contract"
    for file in sorted(path.glob("[!_]*.py")):
        tree = TREES[f"sayso.{folder}.{file.stem}"]
        public = [
            node.name
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name[0] != "_"
        ]
        assert len(public) == 1, f"{file.name} defines {public}"
