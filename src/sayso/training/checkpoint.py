"""A checkpoint: weights, their average, the optimiser's state and the position; no pickle."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.files import JsonObject
from sayso.base.progress import console
from sayso.study.run import Run

KEPT = 2
"""How many checkpoints stay; the last but one is there in case the last proves unreadable."""
PARTS = ("weights.safetensors", "average.safetensors", "optimizer.safetensors")


def save(
    run: Run,
    state: JsonObject,
    parameters: Mapping[str, nn.Parameter],
    average: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write `checkpoints/<state["step"]>/` under a temporary name, rename it, drop older ones."""
    tensors = (
        {name: p.detach() for name, p in parameters.items()},
        dict(zip(parameters, average, strict=True)),
        _optimizer_tensors(parameters, optimizer),
    )
    with files.new_folder(run.checkpoints / str(state["step"])) as folder:
        for part, content in zip(PARTS, tensors, strict=True):
            save_file({n: t.contiguous() for n, t in content.items()}, folder / part)
        sums = {part: files.sha256(folder / part) for part in PARTS}
        files.write_json(folder / "state.json", {**state, "sha256": sums})
    for old in run.checkpoint_folders()[KEPT:]:
        shutil.rmtree(old)


def load_latest(
    run: Run,
    parameters: Mapping[str, nn.Parameter],
    average: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> JsonObject | None:
    """Put the newest checkpoint that can be read into the given objects and return its state.

    The console says which cannot be read. Returns None if there is no checkpoint at all.

    Raises: UserError: if none of them can be read, or it is of another network.
    """
    folders = run.checkpoint_folders()
    for folder in folders:
        try:
            state, tensors = _read(folder)
        except UserError as error:
            console.print(f"{error}; looking for an older one", soft_wrap=True)
        else:
            _put(folder, tensors, parameters, average, optimizer)
            return state
    if folders:
        raise UserError(
            f"no checkpoint of {run.name} can be read; restore one, or delete {run.checkpoints} to "
            "begin at step 0"
        )
    return None


def _read(folder: Path) -> tuple[JsonObject, list[dict[str, Tensor]]]:
    """State and tensors. Raises: UserError: if a file is missing or not what was written."""
    try:
        state = files.read_json(folder / "state.json")
        for part, written in state.get("sha256", {}).items():
            if files.sha256(folder / part) != written:
                raise ValueError(f"{part} is not what was written")
        return {**state, "step": int(state["step"])}, [load_file(folder / part) for part in PARTS]
    except (UserError, OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"checkpoint {folder} cannot be read ({reason})") from None


def _put(
    folder: Path,
    tensors: Sequence[Mapping[str, Tensor]],
    parameters: Mapping[str, nn.Parameter],
    average: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    weights, averages, moments = tensors
    keys = {name.rsplit("/", 1)[1] for name in moments}
    try:
        with torch.no_grad():
            for (name, parameter), mean in zip(parameters.items(), average, strict=True):
                parameter.copy_(weights[name])
                mean.copy_(averages[name])
                optimizer.state[parameter] = {
                    key: moments[f"{name}/{key}"].to(parameter.device) for key in keys
                }
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {folder} is of another network ({error}); restore the model that the run "
            "began with, or choose another --name"
        ) from None


def _optimizer_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
