"""Progress in a log: a line every half minute, with numbers that are true."""

import pytest

from sayso.base import progress


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(progress.time, "monotonic", fake)
    return fake


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_line_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with progress.progress("drawing base", 2560) as advance:
        for _ in range(40):
            clock.now += 49.2  # 64 images at 1.3 a second
            advance(64)
        said = lines(capsys)
        assert len(said) == 39, "one line a batch, for each takes longer than half a minute"
        assert said[0] == "drawing base: 64/2560 images, 1.3 images/s, 0:31:59 left"
        assert said[-1] == "drawing base: 2496/2560 images, 1.3 images/s, 0:00:49 left"
    assert lines(capsys) == ["drawing base: 2560/2560 images, 1.3 images/s, in 0:32:48"]


def test_short_steps_are_gathered(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with progress.progress("aligning", 1000, "steps") as advance:
        for step in range(1000):
            clock.now += 0.125
            advance(1, f"loss {(step + 1) / 1000:.2f}")
    assert lines(capsys) == [
        "aligning: 240/1000 steps, 8.0 steps/s, 0:01:35 left, loss 0.24",
        "aligning: 480/1000 steps, 8.0 steps/s, 0:01:05 left, loss 0.48",
        "aligning: 720/1000 steps, 8.0 steps/s, 0:00:35 left, loss 0.72",
        "aligning: 960/1000 steps, 8.0 steps/s, 0:00:05 left, loss 0.96",
        "aligning: 1000/1000 steps, 8.0 steps/s, in 0:02:05, loss 1.00",
    ]


def test_what_was_done_before_is_no_speed(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with progress.progress("drawing base", 2560, done=2550) as advance:
        for _ in range(10):
            clock.now += 20
            advance()
    said = lines(capsys)
    assert said[0] == "drawing base: 2552/2560 images, 20.0 s each, 0:02:40 left"
    assert said[-1] == "drawing base: 2560/2560 images, 20.0 s each, in 0:03:20"


def test_nothing_to_do_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with progress.progress("drawing base", 8, done=8):
        clock.now += 90
    assert lines(capsys) == []


def test_a_block_that_breaks_off_claims_no_end(clock: Clock, capsys: pytest.CaptureFixture[str]):
    def stopped() -> None:
        with progress.progress("rate", 8) as advance:
            clock.now += 31
            advance(4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert lines(capsys) == ["rate: 4/8 images, 7.8 s each, 0:00:31 left"]


def test_brackets_are_no_markup(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with progress.progress("drawing [bold]x[/bold]", 1) as advance:
        advance()
    assert lines(capsys) == ["drawing [bold]x[/bold]: 1/1 images, in 0:00:00"]
