"""What rewards of two transformers share: one reads the image, the other the prompt."""

from pathlib import Path

from sayso.base.errors import UserError

OPTIONS = ("vision_heads", "vision_layers", "text_heads", "text_layers")
"""Fields that say what the shapes of weights do not, or that a file cut short would lie about."""


def refuse_bad_towers(reward: object) -> None:
    """Raises: UserError: naming the first of `OPTIONS` that is less than 1."""
    for name in OPTIONS:
        if getattr(reward, name) < 1:
            raise UserError(f"{name} {getattr(reward, name)} is too small; give 1 or more")


def refuse_bad_heads(file: Path, tower: str, heads: int, width: int) -> None:
    """Raises: UserError: if the heads cannot share the width of the tower evenly."""
    if width % heads:
        raise UserError(
            f"{tower}_heads {heads} does not divide the {width} numbers of the {tower} tower in "
            f"{file}; give the heads that it was trained with"
        )
