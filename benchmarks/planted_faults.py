"""Faults planted in the method's core, one at a time: which does no test notice?

mutmut writes the faults ([tool.mutmut] of pyproject.toml says where) into a copy of the source,
`mutants/`. Its own run starts the tests anew for each of them. Here they are collected and run
once, and for each fault a fork of that session runs those that reach the changed function, the
fastest first.

    python benchmarks/planted_faults.py --module sayso.votes.labels --tests tests/test_labels.py
"""

import argparse
import ast
import contextlib
import difflib
import gc
import io
import json
import os
import shutil
import signal
import sys
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# before torch is imported: forks of a process with threads of its own would hang
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).parent.parent
COPY = Path("mutants/src")
BUDGET_S = 30.0
"""Seconds of tests, as measured without a fault, that are spent on a fault."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--module", nargs="+", default=[], help="default: all that have faults")
    parser.add_argument("--fault", nargs="+", default=[], help="by their names; default: all")
    parser.add_argument("--tests", nargs="+", default=[], help="default: those of pyproject.toml")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    os.chdir(ROOT)
    config = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["mutmut"]
    plant(asked.module)
    faults = {
        module: [name for name in names if not asked.fault or name in asked.fault]
        for module, names in planted()
        if not asked.module or module in asked.module
    }
    sys.path.insert(0, str(COPY.resolve()))
    os.environ["PYTHONPATH"] = str(COPY.resolve())
    hunt = Hunt(faults, asked.workers)
    tests = asked.tests or config["pytest_add_cli_args_test_selection"]
    pytest.main(["-p", "no:cacheprovider", "-o", "timeout=0", *tests], plugins=[hunt])
    hunt.report()
    return 0 if hunt.results else 1


def plant(modules: Sequence[str]) -> None:
    """Write `mutants/` anew, with faults in these modules; of all that have some, if none."""
    from mutmut.__main__ import copy_src_dir, create_mutants
    from mutmut.configuration import config

    shutil.rmtree("mutants", ignore_errors=True)
    os.environ["MUTANT_UNDER_TEST"] = "mutant_generation"
    if modules:
        config().only_mutate = [f"src/{module.replace('.', '/')}.py" for module in modules]
    _plant_under_decorators()
    with contextlib.redirect_stdout(io.StringIO()):
        copy_src_dir()
        create_mutants(1)


KNOWN_DECORATORS = {
    "property",
    "cached_property",
    "contextmanager",
    "torch.no_grad()",
    "torch.inference_mode()",
}


def _plant_under_decorators() -> None:
    """Mutmut leaves decorated functions out; under these decorators they are like any other."""
    import libcst
    from mutmut.mutation import file_mutation

    skipped = file_mutation.MutationVisitor._skip_node_and_children
    arranged = file_mutation.function_trampoline_arrangement

    def is_known(node: libcst.CSTNode) -> bool:
        if not isinstance(node, libcst.FunctionDef) or not node.decorators:
            return False
        names = {libcst.Module([]).code_for_node(d.decorator) for d in node.decorators}
        return names <= KNOWN_DECORATORS

    def arrange(function: libcst.FunctionDef, mutants: Any, class_name: str | None) -> Any:
        if not is_known(function):
            return arranged(function, mutants, class_name)
        bare = function.with_changes(decorators=[])
        before, (switch, *copies), *rest = arranged(bare, mutants, class_name)
        switch = switch.with_changes(decorators=[*function.decorators, *switch.decorators])
        return before, [switch, *copies], *rest

    file_mutation.MutationVisitor._skip_node_and_children = lambda visitor, node: (
        not is_known(node) and skipped(visitor, node)
    )
    file_mutation.function_trampoline_arrangement = arrange


def planted() -> Iterator[tuple[str, list[str]]]:
    """Each module with faults, and their names."""
    for meta in sorted(COPY.rglob("*.py.meta")):
        names = list(json.loads(meta.read_text())["exit_code_by_key"])
        if names:
            path = meta.relative_to(COPY).with_name(meta.name.removesuffix(".py.meta"))
            yield ".".join(path.parts), names


class Hunt:
    """A pytest plugin: in place of running the tests once, it runs them against each fault."""

    def __init__(self, faults: dict[str, list[str]], workers: int) -> None:
        self.faults, self.workers = faults, workers
        self.reached: dict[str, set[pytest.Item]] = defaultdict(set)
        self.seconds: dict[pytest.Item, float] = {}
        self.results: dict[str, str] = {}
        self._now: pytest.Item | None = None
        self._running: dict[int, str] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("not all tests can be imported")
        _hurry()
        self._run_unchanged(session.items)
        self._start("", [*self.seconds])
        self._reap()
        if self.results.pop("") == "killed":
            raise session.Interrupted("the tests fail in a fork without any fault")
        # what the forks share is not to be copied by a collection of garbage
        gc.collect()
        gc.freeze()
        gc.disable()
        for names in self.faults.values():
            for name in names:
                if len(self._running) == self.workers:
                    self._reap()
                self._start(name, self._tests(name))
        while self._running:
            self._reap()
        return True

    def _run_unchanged(self, items: Sequence[pytest.Item]) -> None:
        """Run every test once: how long it takes, and which functions it reaches."""
        from mutmut.mutation import trampoline

        def record(name: str, caller: object = None) -> None:  # noqa: ARG001 (mutmut's signature)
            if self._now:
                self.reached[name].add(self._now)

        trampoline.record_trampoline_hit = record
        os.environ["MUTANT_UNDER_TEST"] = "stats"
        for item, after in zip(items, [*items[1:], None], strict=True):
            self._now, began = item, time.perf_counter()
            if _passes(item, after):
                self.seconds[item] = time.perf_counter() - began
            else:
                print(f"left out, for it fails without any fault: {item.nodeid}", flush=True)
        self._now = None

    def _tests(self, fault: str) -> list[pytest.Item]:
        """The tests that reach the function, the fastest first, as many as the budget allows."""
        found, spent = [], 0.0
        reached = self.reached[fault.rpartition("__mutmut_")[0]] & self.seconds.keys()
        for item in sorted(reached, key=self.seconds.__getitem__):
            spent += self.seconds[item]
            if found and spent > BUDGET_S:
                break
            found.append(item)
        return found

    def _start(self, fault: str, tests: Sequence[pytest.Item]) -> None:
        if not tests:
            self.results[fault] = "not reached"
            return
        pid = os.fork()
        if pid:
            self._running[pid] = fault
            return
        os.setpgid(0, 0)
        os.environ["MUTANT_UNDER_TEST"] = fault
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        with contextlib.suppress(BaseException):
            os._exit(0 if self._all_pass(tests) else 1)
        os._exit(1)

    def _all_pass(self, tests: Sequence[pytest.Item]) -> bool:
        for item, after in zip(tests, [*tests[1:], None], strict=True):
            # a fault may make a loop endless, or wait for ever: either alarm ends the process
            signal.setitimer(signal.ITIMER_PROF, 5 + 3 * self.seconds[item])
            signal.alarm(60 + int(20 * self.seconds[item]))
            if not _passes(item, after):
                return False
        return True

    def _reap(self) -> None:
        pid, status = os.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what its tests started
        self.results[self._running.pop(pid)] = "survived" if status == 0 else "killed"
        if len(self.results) % 100 == 0:
            print(f"{len(self.results)} of {sum(map(len, self.faults.values()))}", flush=True)

    def report(self) -> None:
        """A table by module, then every fault that was not noticed, as it reads in the code."""
        for module, names in self.faults.items():
            found = Counter(self.results.get(name, "not run") for name in names)
            print(
                f"{module}: {len(names)} faults, " + ", ".join(f"{n} {w}" for w, n in found.items())
            )
        for module, names in self.faults.items():
            left = [name for name in names if self.results.get(name, "killed") != "killed"]
            for name, lines in differences(module, left):
                print(f"\n{self.results.get(name)}: {name}", *lines, sep="\n    ")


def _passes(item: pytest.Item, after: pytest.Item | None) -> bool:
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=after))


def _hurry() -> None:
    """Failures are counted, not explained: no tracebacks, no shrinking of examples."""
    import _pytest.nodes
    import _pytest.python
    from hypothesis import Phase, settings

    _pytest.python.Function.repr_failure = lambda self, excinfo: ""  # noqa: ARG005
    _pytest.nodes.Node._repr_failure_py = lambda self, excinfo, style=None: ""  # noqa: ARG005
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile(
        "planted", phases=phases, database=None, deadline=None, derandomize=True
    )
    settings.load_profile("planted")


def differences(module: str, faults: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The lines that each fault takes out and puts in."""
    source = (COPY / Path(*module.split("."))).with_suffix(".py").read_text()
    lines, code = source.splitlines(), dict[str, list[str]]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "__mutmut_" in node.name:
            code[node.name] = [
                line.replace(node.name, "") for line in lines[node.lineno - 1 : node.end_lineno]
            ]
    for fault in faults:
        name = fault.removeprefix(f"{module}.")
        before, after = code[f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"], code[name]
        changed = difflib.unified_diff(before, after, n=0, lineterm="")
        yield fault, [line for line in changed if line[:3] not in ("---", "+++") and line[0] != "@"]


if __name__ == "__main__":
    sys.exit(main())
