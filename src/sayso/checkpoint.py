"""A checkpoint: weights, their average, the optimiser's state and the position; no pickle."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sayso import files
from sayso.files import JsonObject
from sayso.run import Run

KEPT = 2
"""How many checkpoints stay; the last but one is there in case the last proves unreadable."""


def save(
    run: Run,
    state: JsonObject,
    parameters: Mapping[str, nn.Parameter],
    average: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write `checkpoints/<state["step"]>/` under a temporary name, rename it, drop older ones."""
    with files.new_folder(run.checkpoints / str(state["step"])) as folder:
        _write(folder / "weights.safetensors", {n: p.detach() for n, p in parameters.items()})
        _write(folder / "average.safetensors", dict(zip(parameters, average, strict=True)))
        _write(folder / "optimizer.safetensors", _optimizer_tensors(parameters, optimizer))
        files.write_json(folder / "state.json", state)
    whole = sorted(run.checkpoints.glob("[0-9]*"), key=lambda path: int(path.name))
    for old in whole[:-KEPT]:
        shutil.rmtree(old)


def load(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    average: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> JsonObject:
    """Put a checkpoint into the given objects and return its state."""
    weights = load_file(folder / "weights.safetensors")
    averages = load_file(folder / "average.safetensors")
    moments = load_file(folder / "optimizer.safetensors")
    keys = {name.rsplit("/", 1)[1] for name in moments}
    with torch.no_grad():
        for (name, parameter), mean in zip(parameters.items(), average, strict=True):
            parameter.copy_(weights[name])
            mean.copy_(averages[name])
            optimizer.state[parameter] = {
                key: moments[f"{name}/{key}"].to(parameter.device) for key in keys
            }
    return files.read_json(folder / "state.json")


def _optimizer_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
