"""The probability that a vision-language model says yes to "does this figure show …?"."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sayso.base.errors import UserError
from sayso.base.hub import MODEL, PROCESSOR, copy_files
from sayso.base.weights import load_part, readable
from sayso.data.clip import to_picture
from sayso.rewards import PretrainedReward

WORDS = {"yes": ("Yes", " Yes", "yes", " yes"), "no": ("No", " No", "no", " no")}
"""Ways in which a reply may begin; those count that are one token of the model."""


def probability_of_yes(
    logits: Float[Tensor, "b v"], yes: Sequence[int], no: Sequence[int], against: str
) -> Float[Tensor, " b"]:
    """P(yes) of the first token of a reply.

    Args:
        logits: of the first token.
        yes, no: numbers of the tokens that mean them.
        against: "no": P(yes) / (P(yes) + P(no)); "all": among all tokens.
    Source: Lin et al. 2024, arXiv 2404.01291 (VQAScore), with "all".
    """
    logits = logits.float()
    says_yes = logits[:, list(yes)].logsumexp(dim=1)
    if against == "all":
        return (says_yes - logits.logsumexp(dim=1)).exp()
    return torch.sigmoid(says_yes - logits[:, list(no)].logsumexp(dim=1))


@dataclass
class VlmYes(PretrainedReward):
    """Any model that transformers loads as AutoModelForImageTextToText, asked about each image.

    Source: Lin et al. 2024, arXiv 2404.01291.
    """

    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    source: ClassVar[str] = "a vision-language model of one's choice"

    question: str = 'Does this figure show "{}"? Please answer Yes or No.'
    """What is asked; {} stands for the prompt."""
    against: Literal["no", "all"] = "no"
    """What the probability of yes is measured against: no alone, or all words of the model."""
    number_format: Literal["stored", "fp32"] = "stored"
    """Format in which the model computes: that of its weights, or fp32."""

    def __post_init__(self) -> None:
        if "{}" not in self.question:
            raise UserError(f"question {self.question!r} has no {{}} where the prompt should stand")
        for name, allowed in {
            "against": ("no", "all"),
            "number_format": ("stored", "fp32"),
        }.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r}; choose {' or '.join(allowed)}")

    @property
    def number_format_kept(self) -> torch.dtype | None:
        """As the option says."""
        return torch.float32 if self.number_format == "fp32" else None

    def convert(self, found: Mapping[str, Path], folder: Path) -> None:
        """Copy the model and its processor, in transformers' layout."""
        copy_files(found["weights"], folder, (*MODEL, *PROCESSOR))

    def load(self, weights: Path, device: torch.device | str) -> None:
        """Load the model and its processor.

        Raises: UserError: if the folder holds no such model, or no token means yes or no.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        with readable(weights, "give the folder of a model that reads images and text"):
            self._processor: Any = AutoProcessor.from_pretrained(weights)
        if not getattr(self._processor, "chat_template", None):
            raise UserError(f"{weights} has no chat template; give a model that is tuned for chat")
        self._yes, self._no = (self._tokens(weights, meaning) for meaning in WORDS)
        model = load_part(AutoModelForImageTextToText, weights, "", self.number_format_kept)
        self._model: Any = model.to(device).eval().requires_grad_(False)
        # the other tokens' logits can take more memory than the model's layers
        parameters = inspect.signature(type(self._model).forward).parameters
        self._last_alone = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    def _tokens(self, folder: Path, meaning: str) -> list[int]:
        """The tokens with which a reply of this meaning may begin.

        Raises: UserError: if the model has none.
        """
        encode = self._processor.tokenizer.encode
        written = [encode(word, add_special_tokens=False) for word in WORDS[meaning]]
        unknown = self._processor.tokenizer.unk_token_id
        found = {ids[0] for ids in written if len(ids) == 1} - {unknown}
        if not found:
            raise UserError(f"the tokenizer in {folder} has no single token for {meaning!r}")
        return sorted(found)

    @torch.no_grad()
    def score(
        self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]
    ) -> Float[Tensor, " b"]:
        """The probability of yes for each image, one after the other, in [0, 1].

        So a score does not depend on the other images, whose sizes could change its padding.
        """
        pairs = zip(images, prompts, strict=True)
        return torch.cat([self._one(image, prompt) for image, prompt in pairs]).to(images.device)

    def _one(self, image: Float[Tensor, "3 h w"], prompt: str) -> Float[Tensor, " 1"]:
        question = self.question.replace("{}", prompt)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = self._processor(text=[text], images=[to_picture(image)], return_tensors="pt")
        inputs = inputs.to(self._model.device, self._model.dtype)
        with torch.autocast(self._model.device.type, enabled=False):
            logits = self._model(**inputs, **self._last_alone).logits[:, -1]
        return probability_of_yes(logits, self._yes, self._no, self.against)
