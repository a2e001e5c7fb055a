"""What the processes of a launch (torchrun, accelerate launch) say: each thing once.

A launch has its errors in common: a bad option is one in each of its processes, and where one has
ended the others cannot go on. torch is imported only where there is a launch.
"""

import os
from collections.abc import Mapping
from datetime import timedelta

from sayso.base.types import digest

PATIENCE = timedelta(seconds=5)
ENDED = (
    "another process of this launch has ended; see what it printed, and run the command again to "
    "resume"
)
"""What the others say where one was killed and could say nothing."""
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
"""torch warns in each process of what DDP is asked to do, and of addresses that it tries."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
_OF_DISTRIBUTED = ("DistError", "DistBackendError", "DistNetworkError", "DistStoreError")


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is one of several processes."""
    return int(environment.get("WORLD_SIZE", "1")) > 1


def is_talking(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process shows progress and says what it does: alone, or the first of several."""
    return not is_launched(environment) or environment.get("RANK", "0") == "0"


def is_lost(error: BaseException) -> bool:
    """Whether a library failed because another process of the launch is no longer there."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & set(_OF_DISTRIBUTED):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _LOST)


def may_say(line: str) -> bool:
    """Whether this process is to say the line: no other has, and for `ENDED` none has said why.

    Where the launch has no store that outlives its processes, each says what it has to say.
    """
    if not is_launched() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore

    place = f"sayso/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
            timeout=PATIENCE, wait_for_workers=False,
        )  # fmt: skip
        said_any = store.add(place, 1) > 1
        said_this = store.add(f"{place}/{digest([line])}", 1) > 1
    except (RuntimeError, ValueError, KeyError):
        return True
    return not (said_any if line == ENDED else said_this)
