"""The toy that tests tune, trained once."""

import pytest
from heaps import SAMPLER, N, heaps
from torch import Tensor

from sayso.testing import ToyPolicy


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> ToyPolicy:
    """Predicts eps."""
    return heaps(tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(scope="session")
def own(base: ToyPolicy) -> Tensor:
    """What it draws."""
    cond = base.encode_prompts(["0"] * N)
    return base.sample(cond, cond, range(10_000, 10_000 + N), SAMPLER)
