"""What follows the drawing of a batch is done beside that of the next."""

import errno
import os
import threading
from pathlib import Path

import pytest
from studies import random_study

from sayso.stages import _drawing
from sayso.stages.generate import GenerateConfig, generate
from sayso.study.study import Study


def test_the_caller_goes_on_while_the_work_is_done() -> None:
    drawn, seen = threading.Event(), []
    with _drawing._behind() as later:
        later(lambda: seen.append(drawn.wait(20)))
        drawn.set()
    assert seen == [True]


def test_one_after_the_other_and_one_at_most_waits() -> None:
    seen, first = [], threading.Event()
    with _drawing._behind() as later:
        later(first.wait)
        thread = threading.Thread(target=lambda: later(lambda: seen.append("second")))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive(), "it waits for the work before it"
        first.set()
        thread.join()
    assert seen == ["second"]


@pytest.mark.parametrize("calls", [1, 2])
def test_what_the_work_raises_is_raised(calls: int) -> None:
    """At the next call or, after the last one, at the end."""
    reached = []

    def calling() -> None:
        with _drawing._behind() as later:
            for _ in range(calls):
                later(lambda: 1 / 0)
            reached.append(True)

    with pytest.raises(ZeroDivisionError):
        calling()
    assert bool(reached) == (calls == 1)


def test_a_caller_that_fails_lets_the_work_end() -> None:
    failed, seen = threading.Event(), []
    threading.Timer(0.05, failed.set).start()

    def calling() -> None:
        with _drawing._behind() as later:
            later(lambda: seen.append(failed.wait(20)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calling()
    assert seen == [True]


def test_a_batch_is_kept_while_the_next_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, keep, drawn = _drawing._draw, _drawing._keep, []
    second = threading.Event()

    def drawing(*given):
        drawn.append(draw(*given))
        if len(drawn) == 2:
            second.set()
        return drawn[-1]

    def keeping(*given):
        assert second.wait(60), "the second batch is not drawn before the first is kept"
        keep(*given)

    monkeypatch.setattr(_drawing, "_draw", drawing)
    monkeypatch.setattr(_drawing, "_keep", keeping)
    study = random_study(tmp_path)
    assert generate(study, GenerateConfig(per_prompt=2, batch_size=2)).finished
    assert len(study.samples()) == 6


def test_a_disk_that_fills_up_beside_the_drawing_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, add, added = random_study(tmp_path), Study.add_samples, []

    def full(own: Study, samples, images, *given):
        if len(added) == 1:
            images[-1].save = lambda *_: (_ for _ in ()).throw(
                OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            )
        added.append(add(own, samples, images, *given))

    config = GenerateConfig(per_prompt=4, batch_size=3)
    with monkeypatch.context() as patch:
        patch.setattr(Study, "add_samples", full)
        with pytest.raises(OSError, match="No space left"):
            generate(study, config)
    assert len(study.samples()) == 3
    assert all((study.path / s.path).exists() for s in study.samples())
    assert not list(study.path.rglob("*.tmp"))
    assert generate(study, config).result["drawn"] == 9
    assert len(study.samples()) == 12


def test_files_that_a_killed_process_was_writing_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, config = random_study(tmp_path), GenerateConfig(per_prompt=2, batch_size=2)
    left: dict[str, list[Path]] = {"dead": [], "alive": []}

    def killed(own: Study, samples, *_):
        for owner, pid in (("dead", 2**31 - 1), ("alive", os.getppid())):
            for name in (samples[0].path, samples[0].latents):
                path = own.path / name
                half = path.with_name(f".{path.name}.{pid}.tmp")
                half.parent.mkdir(parents=True, exist_ok=True)
                half.write_bytes(b"half")
                left[owner].append(half)
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Study, "add_samples", killed)
        with pytest.raises(RuntimeError, match="killed"):
            generate(study, config)
    assert generate(study, config).finished
    assert not any(path.exists() for path in left["dead"])
    assert all(path.exists() for path in left["alive"])
    assert len(left["dead"]) == 2
