"""Batches ahead: in order, no further than asked, errors in their turn, no thread left behind."""

import threading
import time
from collections.abc import Iterator

import pytest

from sayso.data.prefetch import prefetched


class Killed(BaseException):
    """Stands for what is no Exception."""


def counted(n: int, made: list[int], error: BaseException | None = None) -> Iterator[int]:
    for i in range(n):
        made.append(i)
        yield i
    if error:
        raise error


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("batches")]


def test_all_come_in_order_and_are_made_ready_elsewhere() -> None:
    where: set[str] = set()

    def ready(batch: int) -> int:
        where.add(threading.current_thread().name)
        return batch * 10

    assert list(prefetched(counted(7, []), ready)) == [0, 10, 20, 30, 40, 50, 60]
    assert all(name.startswith("batches") for name in where)
    assert not threads()


def test_made_while_the_one_before_is_used_and_no_further_than_asked() -> None:
    made: list[int] = []
    batches = prefetched(counted(50, made), lambda batch: batch, ahead=2)
    assert next(batches) == 0
    until = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1, 2]
    batches.close()
    assert not threads()


@pytest.mark.parametrize("error", [ValueError("bad row"), Killed()])
def test_an_error_comes_after_the_batches_before_it(error: BaseException) -> None:
    batches = prefetched(counted(3, [], error), lambda batch: batch)
    seen = [next(batches) for _ in range(3)]
    with pytest.raises(type(error)):
        next(batches)
    assert seen == [0, 1, 2]
    assert not threads()


def test_no_batches_at_all() -> None:
    assert list(prefetched(counted(0, []), lambda batch: batch)) == []
