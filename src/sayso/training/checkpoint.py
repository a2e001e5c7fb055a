"""A checkpoint: named tensors, through torch.distributed.checkpoint, and the position; no pickle.

Every process writes its share (of a sharded weight its shard, of a replicated one what falls to
it), in a thread, while training goes on.
"""

import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.files import JsonObject
from sayso.base.progress import console
from sayso.study.run import Run

OPTIMIZER = "optimizer"
KEPT = 2
"""How many checkpoints stay; the last but one is there in case the last proves unreadable."""


class Contents(NamedTuple):
    """What a checkpoint keeps of a training: the very tensors that it uses.

    Attributes:
        parameters: trainable weights by name.
        optimizer: of these weights.
        more: what else there is, such as {"average": …} or the weights of an older policy: part →
            name → tensor.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    more: Mapping[str, Mapping[str, Tensor]]

    def parts(self) -> dict[str, dict[str, Tensor]]:
        state = {
            f"{name}/{key}": torch.as_tensor(value)
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        more = {part: dict(tensors) for part, tensors in self.more.items()}
        return {"weights": dict(self.parameters), OPTIMIZER: state, **more}


class Saver:
    """Writes checkpoints in a thread, one at a time; all processes of a launch call it alike.

    As a context manager it waits for the last one, whatever ends the block.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        # a group of its own: what the thread tells the others must not meet the training's
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        self._group = None if alone else cast(ProcessGroup, dist.new_group(backend="gloo"))

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if self._group is not None:
                # its threads must not outlive the process's own group
                dist.destroy_process_group(self._group)
                self._group = None

    def save(self, state: JsonObject, contents: Contents) -> None:
        """Copy the tensors to the CPU and begin to write `checkpoints/<state["step"]>/`.

        Waits for the checkpoint before it first. The folder has a temporary name until all of it is
        on the disk; then older ones are dropped.

        Args:
            state: the position, with "step"; JSON.
            contents: what to keep.
        Raises: OSError: if the checkpoint before could not be written.
        """
        self.wait()
        copied = {
            part: {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
            for part, tensors in contents.parts().items()
        }
        self._pending = self._thread.submit(_write, self._run, state, copied, self._group)

    def wait(self) -> None:
        """Wait until the last checkpoint is written. Raises: OSError: if it could not be."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _write(
    run: Run,
    state: JsonObject,
    parts: Mapping[str, dict[str, Tensor]],
    group: ProcessGroup | None,
) -> None:
    main = group is None or dist.get_rank(group) == 0
    final = run.checkpoints / str(state["step"])
    with files.new_folder(final) if main else nullcontext() as made:
        folder = _agreed(made, group)
        for part, tensors in parts.items():
            with _plain_errors():
                dcp.save(
                    tensors,
                    storage_writer=HuggingFaceStorageWriter(
                        str(folder / part), save_distributed=True
                    ),
                    process_group=group,
                    no_dist=group is None,
                )
        if group is not None:
            dist.barrier(group)
        if main:
            written = sorted(path for path in folder.rglob("*") if path.is_file())
            sums = {path.relative_to(folder).as_posix(): files.sha256(path) for path in written}
            files.write_json(folder / "state.json", {**state, "sha256": sums})
    if main:
        for old in run.checkpoint_folders()[KEPT:]:
            shutil.rmtree(old)
    if group is not None:
        # for all processes it is written only when it has its name
        dist.barrier(group)


def _agreed(folder: Path | None, group: ProcessGroup | None) -> Path:
    """The main process's folder, for all."""
    told: list[Any] = [folder]
    if group is not None:
        dist.broadcast_object_list(told, group_src=0, group=group)
    return told[0]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A block that raises what went wrong itself, not the report on it by process."""
    # one process is no mistake here
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


def load_latest(run: Run, contents: Contents) -> JsonObject | None:
    """Put the newest checkpoint that can be read into the tensors and return its state.

    The console says which cannot be read. Returns None if there is no checkpoint at all.

    Args:
        contents: as `Saver.save` was given them, on any device.
    Raises: UserError: if none of them can be read, or it is of another network.
    """
    folders = run.checkpoint_folders()
    for folder in folders:
        try:
            state = _checked(folder)
        except UserError as error:
            console.print(f"{error}; looking for an older one", soft_wrap=True)
        else:
            _put(folder, contents)
            return state
    if folders:
        raise UserError(
            f"no checkpoint of {run.name} can be read; restore one, or delete {run.checkpoints} "
            "to start from step 0"
        )
    return None


def _checked(folder: Path) -> JsonObject:
    """The state. Raises: UserError: if a file is missing, strange or not what was written."""
    try:
        state = files.read_json(folder / "state.json")
        for name, written in state.get("sha256", {}).items():
            if files.sha256(folder / name) != written:
                raise ValueError(f"{name} differs from what was written")
        return {**state, "step": int(state["step"])}
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"checkpoint {folder} cannot be read ({reason})") from None


def _put(folder: Path, contents: Contents) -> None:
    earlier = (folder / "weights.safetensors").is_file()
    read = _read_earlier if earlier else _read
    try:
        with torch.no_grad():
            _make_state(contents, _kinds_earlier(folder) if earlier else _kinds(folder))
            for part, tensors in contents.parts().items():
                read(folder, part, tensors)
            _make_counters(contents)
    except (KeyError, RuntimeError, ValueError, OSError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"checkpoint {folder} belongs to another network ({reason}); restore the model that "
            "the run began with, or choose another --name"
        ) from None


class _Kind(NamedTuple):
    """Of a stored tensor."""

    size: torch.Size
    dtype: torch.dtype


def _make_state(contents: Contents, kinds: Mapping[str, _Kind]) -> None:
    """Give the optimiser the state that it has after a step, to be read into."""
    # in one order in every process: whoever gathers shards goes through them together
    keys = sorted({name.rsplit("/", 1)[1] for name in kinds})
    for name, parameter in contents.parameters.items():
        contents.optimizer.state[parameter] = {
            key: torch.zeros_like(parameter, dtype=kind.dtype)
            if kind.size == parameter.shape and parameter.ndim
            else torch.zeros(kind.size, dtype=kind.dtype, device=parameter.device)
            for key in keys
            # in 8 bits large weights have other tensors than small ones
            if (kind := kinds.get(f"{name}/{key}"))
        }


def _make_counters(contents: Contents) -> None:
    """Whole numbers again of what an optimiser counts in whole numbers."""
    for state in contents.optimizer.state.values():
        for key, value in state.items():
            if value.ndim == 0 and value.dtype == torch.int64:
                state[key] = value.item()


def _kinds(folder: Path) -> dict[str, _Kind]:
    stored = HuggingFaceStorageReader(str(folder / OPTIMIZER)).read_metadata()
    tensors = stored.state_dict_metadata.items()
    return {
        name: _Kind(t.size, t.properties.dtype)
        for name, t in tensors
        if isinstance(t, TensorStorageMetadata)
    }


def _read(folder: Path, part: str, tensors: dict[str, Tensor]) -> None:
    with _plain_errors():
        reader = HuggingFaceStorageReader(str(folder / part))
        dcp.load(tensors, storage_reader=reader, no_dist=True)


# checkpoints of before: a file for each part, written by one process


def _kinds_earlier(folder: Path) -> dict[str, _Kind]:
    stored = load_file(folder / f"{OPTIMIZER}.safetensors")
    return {name: _Kind(tensor.shape, tensor.dtype) for name, tensor in stored.items()}


def _read_earlier(folder: Path, part: str, tensors: dict[str, Tensor]) -> None:
    stored = load_file(folder / f"{part}.safetensors")
    for name, tensor in tensors.items():
        tensor.copy_(stored[name])
