"""Batches made ahead in a thread, while the step before them is computed."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")
Ready = TypeVar("Ready")


def prefetched(
    batches: Iterator[Made], ready: Callable[[Made], Ready], ahead: int = 2
) -> Iterator[Ready]:
    """`ready(batch)` for each batch, in their order, each made while the ones before are used.

    What `batches` raises is raised when its turn comes, after the batches before it. Not for
    batches that hang on the steps before them, such as rollouts.

    Args:
        batches: used by one thread only, never by two at a time.
        ready: what else the thread does with a batch, such as moving it to the device.
        ahead: batches made or being made beside the one in use, ≥ 1.
    """
    with ThreadPoolExecutor(1, "batches") as thread:

        def following() -> tuple[Ready] | None:
            return next(((ready(batch),) for batch in batches), None)

        waiting = deque(thread.submit(following) for _ in range(ahead))
        try:
            while found := waiting.popleft().result():
                waiting.append(thread.submit(following))
                yield found[0]
        finally:
            for future in waiting:
                future.cancel()
