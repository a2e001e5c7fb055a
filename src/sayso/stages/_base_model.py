"""What a user names as the base model, as study.json has it."""

from pathlib import Path

from sayso.base.errors import UserError
from sayso.base.extras import need
from sayso.study.model_files import model_name

PICKLED = (".ckpt", ".pt", ".pth", ".bin")


def base_model_name(model: str, config: str, lora: str) -> str:
    """A world, a hub id or a folder's whole path; files and LoRAs are made a folder first.

    Args:
        model: what the user typed for the base model.
        config: the folder or hub id that a single file's configs are of.
        lora: the LoRA that is added to the weights.
    Raises: UserError: if there is no such model, or what was given does not belong together.
    """
    path = Path(model).expanduser()
    if path.suffix in PICKLED and not path.is_dir():
        raise UserError(
            f"base model {model} is a pickled file, which is not read because it can run code; "
            "give the .safetensors file"
        )
    if path.suffix == ".gguf":
        raise UserError(
            f"base model {model} is quantised, which cannot be trained; give the .safetensors file"
        )
    if not (config or lora or path.suffix == ".safetensors"):
        return model_name(model, "base model", "model_index.json")
    need("train", "with a base model of one file, or with a LoRA,")
    from sayso.families._conversion import as_folder

    return str(as_folder(model, config, lora))
