"""Weights as they lie on disk: whole, under their own names and finite, or refused in one line."""

import logging
import pickle
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Size, Tensor, nn

from sayso.base.devices import is_out_of_memory
from sayso.base.errors import UserError
from sayso.base.progress import console

UNREADABLE = (
    OSError, ImportError, AttributeError, KeyError, TypeError, ValueError, RuntimeError,
    OverflowError, SafetensorError,
)  # fmt: skip
"""What diffusers, transformers and their tokenizers raise for a folder that they cannot use."""

VARIANTS = ("fp16", "bf16", "non_ema")
"""Variants in the order in which they are taken where the plain weights are missing: the first
two are the plain weights rounded, the third holds weights that were not averaged."""
_VARIANT = re.compile(
    r"(?:diffusion_pytorch_)?model(?:\.(?P<a>\w+)(?:-\d+-of-\d+)?|-\d+-of-\d+\.(?P<b>\w+))\.safetensors"
)

ANOTHER_FILE = "give the file that its authors published"

TOKENIZER_FILES = (
    ("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",), ("tokenizer.model",),
)  # fmt: skip
"""The files that hold a tokenizer's words: one of these sets."""

Mismatch = tuple[str, Size, Size]
"""A weight's name, its shape in the file, and the one that the model wants."""


@contextmanager
def readable(what: Path | str, advice: str = "restore it") -> Iterator[None]:
    """A block that reads `what`; whatever a library raises in it becomes one line with the reason.

    Raises: UserError: naming `what`. Out of memory is no fault of the file and passes.
    """
    try:
        yield
    except UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{what} cannot be loaded ({reason_of(error)}); {advice}") from None


def reason_of(error: BaseException) -> str:
    """What a library said was wrong, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0].rstrip(".:") if lines else ""
    kind = type(error).__name__
    return f"{kind}: {said}" if isinstance(error, (KeyError, AttributeError)) or not said else said


def load_part(kind: Any, folder: Path, part: str, dtype: torch.dtype | None = torch.float32) -> Any:
    """One part of a model folder, from safetensors only.

    Where the plain weights are missing, a variant of them is taken and named.

    Args:
        kind: a class with diffusers' or transformers' `from_pretrained`.
        folder: the model's folder.
        part: the subfolder, "" for the folder itself.
        dtype: number format of the weights in memory; None = as in the files.
    Raises: UserError: if files are missing, damaged or pickled, or the weights are not exactly
        those of the model, or not finite.
    """
    where = folder / part
    variant = _variant(where)
    with readable(where), quiet_libraries():
        dtype = dtype or stored_format(where, variant)
        model, facts = kind.from_pretrained(
            where, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False,
            variant=variant, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    refuse_differences(
        where, facts["missing_keys"], facts["unexpected_keys"], facts["mismatched_keys"]
    )
    refuse_not_finite(where, model.state_dict())
    if variant:
        console.print(
            f"{where}: using the {variant} variant of the weights, loaded as {str(dtype)[6:]}",
            soft_wrap=True,
        )
    return model


FORMATS = {"F16": torch.float16, "BF16": torch.bfloat16}


def stored_format(where: Path, variant: str | None = None) -> torch.dtype:
    """The number format of safetensors weights: fp32 unless all are fp16, or all bf16 or fp8.

    Args:
        where: a file, or the folder of a part.
        variant: which of the folder's files; None = the plain ones.
    """
    files = [where]
    if where.is_dir():
        files = [f for f in where.glob("*.safetensors") if _variant_in(f.name) == variant]
    found: set[str] = set()
    for file in files:
        with safe_open(file, "pt") as opened:
            found |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    found = {"BF16" if k.startswith("F8") else k for k in found if k.startswith(("F", "BF"))}
    return FORMATS.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def bytes_in_memory(folder: Path, dtype: torch.dtype | None = torch.float32) -> int:
    """Bytes of the weights of a folder and those below, once loaded as by `load_part`; reads none.

    Args:
        dtype: number format in memory; None = as in the files.
    Raises: UserError: if a file is not what it should be.
    """
    found = 0
    for where in {file.parent for file in folder.rglob("*.safetensors")}:
        variant = _variant(where)
        itemsize = (dtype or stored_format(where, variant)).itemsize
        for file in where.glob("*.safetensors"):
            if _variant_in(file.name) == variant:
                with readable(file), safe_open(file, "pt") as opened:
                    shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
                found += itemsize * sum(map(prod, shapes))
    return found


def load_tokenizer(kind: Any, folder: Path) -> Any:
    """A tokenizer with its words.

    Args:
        kind: a class with transformers' `from_pretrained`.
        folder: where its files are.
    Raises: UserError: if they are missing or damaged; the library takes an empty vocabulary for
        words that are missing.
    """
    whole = any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES)
    if not whole:
        raise UserError(
            f"{folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt); restore "
            "the folder"
        )
    with readable(f"the tokenizer in {folder}", "restore the folder"), quiet_libraries():
        return kind.from_pretrained(folder)


def _variant(folder: Path) -> str | None:
    """The variant to load, None for the plain weights.

    Raises: UserError: if there are no safetensors weights, or a file is a pointer to one.
    """
    names = [path.name for path in sorted(folder.glob("*.safetensors"))]
    if not names:
        raise UserError(
            f"{folder} has no .safetensors weights (pickled weights are not read, because they "
            "can run code); save the model with safe_serialization=True"
        )
    for name in names:
        refuse_pointer(folder / name)
    found = {variant for name in names if (variant := _variant_in(name))}
    if len(found) == 0 or any(_is_plain(name) for name in names):
        return None
    return next((v for v in VARIANTS if v in found), min(found))


def _variant_in(name: str) -> str | None:
    """The variant that a file's name says; None for plain weights and other files."""
    match = _VARIANT.fullmatch(name)
    return match and (match["a"] or match["b"])


def _is_plain(name: str) -> bool:
    return re.fullmatch(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors", name) is not None


def refuse_pointer(file: Path) -> None:
    """Raises: UserError: if the file is what Git leaves of a large one until it is fetched."""
    with readable(file), file.open("rb") as opened:
        pointer = opened.read(24) == b"version https://git-lfs."
    if pointer:
        raise UserError(f"{file} is a Git LFS pointer, not the weights; run git lfs pull there")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """A block in which diffusers and transformers print neither warnings nor progress bars, nor
    the errors that they raise too.

    What matters of what they would say is refused by name.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = (diffusers_logging, transformers_logging)
    before = [logger.get_verbosity() for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.set_verbosity(logging.CRITICAL)
    # a bar for the moment of loading would only break ours
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, verbosity in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def read_tensors(file: Path, advice: str = "restore it") -> dict[str, Tensor]:
    """The tensors of a safetensors file, all finite.

    Raises: UserError: if the file is missing or damaged, or a number is not finite.
    """
    with readable(file, advice):
        tensors = load_file(file)
    refuse_not_finite(file, tensors, advice)
    return tensors


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint as its authors published it: safetensors, or a pickle.

    A pickle is read with `weights_only`, so that it cannot run code. Where the tensors lie under
    one of the keys "state_dict" and "model", they are taken from there.

    Raises: UserError: if the file is missing or damaged, holds anything but tensors by name, or a
        number is not finite.
    """
    refuse_pointer(file)
    if file.suffix == ".safetensors":
        return read_tensors(file, ANOTHER_FILE)
    try:
        with readable(file, ANOTHER_FILE), warnings.catch_warnings():
            # of the pickle's protocol, before it is refused
            warnings.simplefilter("ignore", UserWarning)
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError):
        raise UserError(
            f"{file} is a pickle with more than tensors in it, which could run code, or no pickle "
            f"at all; {ANOTHER_FILE}"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise UserError(f"{file} does not hold tensors by name; {ANOTHER_FILE}")
    refuse_not_finite(file, found, ANOTHER_FILE)
    return dict(found)


def put(
    module: nn.Module, tensors: Mapping[str, Tensor], where: Path, advice: str = "restore it"
) -> None:
    """Load tensors into the module they were saved from.

    Raises: UserError: if their names or shapes are not exactly the module's.
    """
    own = module.state_dict()
    shared = sorted(own.keys() & tensors.keys())
    odd = [(k, tensors[k].shape, own[k].shape) for k in shared if tensors[k].shape != own[k].shape]
    refuse_differences(where, own.keys() - tensors.keys(), tensors.keys() - own.keys(), odd, advice)
    module.load_state_dict(dict(tensors))


def refuse_differences(
    where: Path,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[Mismatch] = (),
    advice: str = "restore it",
) -> None:
    """Refuse weights that are not exactly those of the model: the rest would be random.

    Args:
        where: the file or folder that the weights are in.
        missing: names that the model has and the file lacks.
        unexpected: names that the file has and the model lacks.
        mismatched: weights of another shape.
        advice: what to do, if the names have no prefix too many.
    Raises: UserError: naming one weight of each kind, and how many there are.
    """
    if prefix := _prefix(missing, unexpected):
        raise UserError(
            f"{where} has its weights under other names: all {len(unexpected)} that the model "
            f"does not know begin with {prefix!r}, such as {min(unexpected)}; save the unwrapped "
            "model, or remove the prefix from the names"
        )
    said = []
    if missing:
        said.append(f"lacks weights that the model needs ({_some(missing)})")
    if unexpected:
        said.append(f"has weights that the model does not know ({_some(unexpected)})")
    if mismatched:
        shapes = [
            f"{name} {list(given)} where the model has {list(wanted)}"
            for name, given, wanted in mismatched
        ]
        said.append(f"has weights of the wrong shape ({_some(shapes)})")
    if said:
        raise UserError(f"{where} {' and '.join(said)}; {advice}")


def _some(names: Collection[str]) -> str:
    return f"{len(names)}, such as {min(names)}"


def _prefix(missing: Collection[str], unexpected: Collection[str]) -> str:
    """What stands before every unknown name, if without it the first is one of the missing."""
    first = min(unexpected, default="")
    found = [first.removesuffix(name) for name in missing if first.endswith(f".{name}")]
    prefix = min(found, key=len, default="")
    return prefix if all(name.startswith(prefix) for name in unexpected) else ""


def refuse_not_finite(
    where: Path, tensors: Mapping[str, Tensor], advice: str = "restore it"
) -> None:
    """Raises: UserError: naming one weight that holds NaN or infinity, and how many there are."""
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise UserError(f"{where} has weights that are NaN or infinite ({_some(bad)}); {advice}")
