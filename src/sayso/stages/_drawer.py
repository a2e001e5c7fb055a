"""The model that draws, in two halves: text encoders first, then network and autoencoder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from sayso.base.devices import (
    NO_OPTION_LEFT,
    OUT_OF_MEMORY,
    QUANTISED,
    MixedPrecision,
    enough_memory,
    is_out_of_memory,
    make_accelerator,
)
from sayso.base.errors import UserError
from sayso.base.extras import need
from sayso.base.progress import progress
from sayso.base.types import Sampler
from sayso.stages._drawing_plan import Drawing
from sayso.study.study import Study

if TYPE_CHECKING:
    from sayso.families import Cond, Policy

MOST_HELD = 1 << 31
"""Bytes of conditions, in main memory, after which those of further batches wait: 250 texts of
FLUX.1's T5, 9,000 of CLIP ViT-L/14."""


class Encoded(NamedTuple):
    """A batch and its conditions, on the CPU.

    Attributes:
        cond: a row for each distinct text of the batch, in order.
        uncond: one row, of the negative prompt.
    """

    batch: Sequence[Drawing]
    cond: "Cond"
    uncond: "Cond"


class Drawer:
    """The model of some batches, which checks when it is made that it can draw them.

    `for policy, encoded in drawer` gives this process's share of the batches in turns, each with
    the policy that draws them. It is loaded for each turn in halves: text encoders, which are gone
    when the network comes. Of most plans there is one turn.
    """

    def __init__(
        self, study: Study, batches: Sequence[Sequence[Drawing]], mixed: MixedPrecision,
        batch_size: int,
    ) -> None:  # fmt: skip
        """Load the model for the first turn.

        Args:
            batches: all of one model and one sampler.
            mixed: number format of the arithmetic.
            batch_size: as the user gave it, for the advice where memory runs out.
        Raises: UserError: if a prompt does not fit the tokenizer, or the sampler the model.
        """
        first = batches[0][0][1]
        if first.sampler.base_precision in QUANTISED:
            need("quantised", f"generate --base-precision {first.sampler.base_precision}")
        self.study, self.model, self.sampler = study, first.model, first.sampler
        self.accelerator, self.batch_size = make_accelerator(mixed), batch_size
        policy = self._load("text")
        policy.check_sampler(self.sampler)
        texts = dict.fromkeys(prompt.text for batch in batches for prompt, _ in batch)
        policy.check_prompts([*texts, self.sampler.negative_prompt])
        self.mine = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        self._left = [*self.mine]
        self._next = self._turn(policy) if self._left else None

    def __iter__(self) -> "Iterator[tuple[Policy, list[Encoded]]]":
        while self._next:
            policy, encoded = self._next
            self._next = None
            yield policy, encoded
            for part in ("network", "vae"):
                policy.release(part)
            if self._left:
                # the accelerator holds the network too
                self.accelerator.free_memory()
                self._next = self._turn(self._load("text"))

    @property
    def advice(self) -> str:
        """What to do where one image at once is too much."""
        return lighter(self.sampler)

    def _turn(self, encoder: "Policy") -> "tuple[Policy, list[Encoded]]":
        encoded = self._encoded(encoder)
        encoder.release("text")
        if self.accelerator.device.type != "cpu":
            # looking for what nothing holds is slow, and a CPU's memory needs none of it
            self.accelerator.free_memory()
        policy = self._load("network", "vae")
        network = policy.network.eval()
        policy.network = self.accelerator.prepare_model(network, evaluation_mode=True)
        return policy, encoded

    def _load(self, *parts: str) -> "Policy":
        from sayso.families._loading import load_policy

        with _room(self.model, self.advice):
            return load_policy(
                self.study, self.model, self.accelerator.device, self.sampler.base_precision, parts,
                merge=False,
            )  # fmt: skip

    def _encoded(self, policy: "Policy") -> list[Encoded]:
        """The next batches, as many as conditions may be held of."""
        import torch

        found, held = list[tuple[Sequence[Drawing], "Cond"]](), 0
        with (
            progress("encoding prompts", len(self._left), "batches") as advance,
            enough_memory("--batch-size", self.batch_size, self.advice),
            torch.inference_mode(),
            self.accelerator.autocast(),
        ):
            while self._left and held < MOST_HELD:
                batch = self._left.pop(0)
                texts = [*dict.fromkeys(prompt.text for prompt, _ in batch)]
                cond = _conditions(policy, texts)
                found.append((batch, cond))
                held += sum(value.nbytes for value in cond.values())
                advance()
            uncond = _conditions(policy, [self.sampler.negative_prompt])
        return [Encoded(batch, cond, uncond) for batch, cond in found]


def lighter(sampler: Sampler) -> str:
    """What to do where a model is too large for a device."""
    if sampler.base_precision == "nf4":
        return NO_OPTION_LEFT
    return (
        "give --base-precision nf4 and another --name; sayso generate --dry-run says what that "
        "needs"
    )


@contextmanager
def _room(model: str, advice: str) -> Iterator[None]:
    """A block that loads the model. Raises: UserError: if it is too large."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{OUT_OF_MEMORY} while {model} was loaded; {advice}") from None


def _conditions(policy: "Policy", texts: Sequence[str]) -> "Cond":
    from sayso.base.finite import refuse_not_finite

    cond = policy.encode_prompts(texts)
    for value in cond.values():
        named = [f"prompt {text!r}" for text in texts]
        refuse_not_finite(value, named, f"the text encoder of {policy.name}")
    return {key: value.cpu() for key, value in cond.items()}
