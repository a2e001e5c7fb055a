"""The tiny world as the rest of the package sees it."""

from typing import Any, ClassVar

from sayso.base.errors import UserError
from sayso.base.types import Prompt, Sampler, Size
from sayso.base.worlds import World
from sayso.tinyworld import paths
from sayso.tinyworld.defaults import SAMPLER
from sayso.tinyworld.scenes import OBJECTS


class TinyWorld(World):
    """Drawn scenes, a tiny Stable Diffusion and CLIP, and raters that see."""

    name: ClassVar = "tinyworld"
    title: ClassVar = "the tiny world"
    sampler: ClassVar[Sampler] = SAMPLER
    base_model: ClassVar = paths().pipeline
    clip_model: ClassVar = paths().clip
    judge: ClassVar = "tinyworld"
    reader_weights: ClassVar = paths().judge

    def grammar(self) -> Any:
        from sayso.tinyworld.grammar import grammar

        return grammar()

    def pretraining_images(self, seed: int, size: Size) -> Any:
        from sayso.tinyworld.pretraining_images import Scenes

        if size.width != size.height:
            raise UserError(
                f"image_size {size} is not possible with the tiny world's pre-training images, "
                "which are squares; give one number"
            )
        return Scenes(seed, size.width)

    def knows(self, prompt: Prompt) -> bool:
        return prompt.slots.get("object") in OBJECTS

    def reader(self, device: Any) -> Any:
        from sayso.tinyworld.judge import Judge

        return Judge.load(device=device)

    def raters(self) -> Any:
        from sayso.tinyworld import simulated

        return simulated


WORLD = TinyWorld()
