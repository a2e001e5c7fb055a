"""The paper's reward: a small network on frozen CLIP embeddings, trained by `fit` on ratings."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sayso.base import files
from sayso.base.devices import best_precision
from sayso.base.errors import UserError
from sayso.base.progress import progress
from sayso.base.types import Prompt
from sayso.base.weights import put, read_tensors
from sayso.data.clip import embed_samples
from sayso.prompts.grammar import Grammar, altered, load_grammar
from sayso.rewards import ClipReward, RatedSamples, TrainableReward
from sayso.study.run import Run
from sayso.study.study import Study


def squared_error(score: Float[Tensor, " b"], label: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """(y − r)² of each image's label y and score r, both in [0, 1].

    Source: Lee et al. 2023, arXiv 2302.12192, L_MSE.
    """
    return (label - score) ** 2


def prompt_classification_loss(
    scores: Float[Tensor, "b n"], *, temperature: float
) -> Float[Tensor, " b"]:
    """Cross-entropy of telling an image's true prompt from altered ones.

    −log P(0 | x), P(i | x) = exp(r(x, z_i) / T) / Σ_j exp(r(x, z_j) / T).
    All scores carry gradient.
    With r in [0, 1] and T = 2 it stays within 1 / T of log n, so it pulls gently.

    Args:
        scores: r(x, z_i), the true prompt at index 0; −inf where an image has fewer prompts.
        temperature: T > 0, no unit; the paper's value is 2.
    Source: Lee et al. 2023, arXiv 2302.12192, L_pc.
    """
    return -F.log_softmax(scores / temperature, dim=1)[:, 0]


COSINES = 16
"""How many inputs of the head carry the cosine with `interaction`."""


class _Head(nn.Module):
    """Two hidden layers and a sigmoid over a joined pair of CLIP embeddings.

    Each embedding is scaled to length √d, so that its numbers are about 1 in size whatever CLIP's
    own scale is. `interaction` first takes off the mean embedding of the training rows, then adds
    the product and the distance of the two, number by number, and CLIP's own cosine, which also
    goes straight to the output: what the head learns is a correction of it.
    """

    image_mean: Tensor
    text_mean: Tensor
    cosine_mean: Tensor

    def __init__(
        self, width: int, hidden_width: int, *, interaction: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.interaction = interaction
        joined = 4 * width + COSINES if interaction else 2 * width
        self.register_buffer("image_mean", torch.zeros(width))
        self.register_buffer("text_mean", torch.zeros(width))
        self.register_buffer("cosine_mean", torch.zeros(1))
        self.cosine_weight = nn.Parameter(torch.ones(1)) if interaction else 0.0
        self.layers = nn.Sequential(
            nn.Linear(joined, hidden_width), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden_width, hidden_width), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden_width, 1),
        )  # fmt: skip

    def forward(
        self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]
    ) -> Float[Tensor, " b"]:
        """The score of each pair, in [0, 1]."""
        scale = math.sqrt(images.shape[1])
        cosine = 10 * (F.cosine_similarity(images, texts, dim=1)[:, None] - self.cosine_mean)
        images = F.normalize(F.normalize(images, dim=1) - self.image_mean, dim=1) * scale
        texts = F.normalize(F.normalize(texts, dim=1) - self.text_mean, dim=1) * scale
        parts = [images, texts]
        if self.interaction:
            # repeated, so that one number among hundreds is not drowned by their noise
            parts += [images * texts, (images - texts).abs(), cosine.expand(-1, COSINES)]
        logits = self.layers(torch.cat(parts, dim=1)) + self.cosine_weight * cosine
        # in half precision a sigmoid has steps of 1/256
        return torch.sigmoid(logits.float())[:, 0]


@dataclass
class ClipHead(ClipReward, TrainableReward):
    """The reward function of Lee et al. 2023, arXiv 2302.12192, on any CLIP model.

    Options say where the paper does not give a value.
    """

    hidden_width: int = 1024
    """Units in each of the two hidden layers."""
    joining: Literal["concatenation", "interaction"] = "concatenation"
    """How image and text embeddings are joined: concatenation, as in the paper; or interaction,
    which adds their product, their distance and CLIP's cosine, and is better with few ratings."""
    dropout: float = 0.0
    """Share of hidden units dropped at random during training, in [0, 1); 0 in the paper."""
    prompt_classification_weight: float = 0.5
    """Weight of classifying the true prompt against altered ones, the paper's λ; 0 = off."""
    temperature: float = 2.0
    """Temperature of that classification, the paper's T."""
    n_altered: int = 4
    """Altered prompts per good image and epoch; not given in the paper."""
    grammar: str = ""
    """Prompt set whose words alter prompts; default: the set of the study's prompts."""
    learning_rate: float = 3e-4
    """Learning rate of AdamW; not given in the paper."""
    weight_decay: float = 0.01
    """Weight decay of AdamW; not given in the paper."""
    batch_size: int = 64
    """Rated images per step; not given in the paper."""
    max_epochs: int = 40
    """Maximum number of passes over the rated images; not given in the paper."""
    patience: int = 6
    """Training stops after this many epochs without a lower held-out error; not given in the
    paper."""

    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """Precision of the arithmetic during training; auto = bf16 if the machine supports it."""

    differentiable: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Check the options."""
        wrong = {
            "hidden_width": self.hidden_width < 1,
            "joining": self.joining not in ("concatenation", "interaction"),
            "mixed_precision": self.mixed_precision not in ("auto", "no", "bf16"),
            "prompt_classification_weight": not 0 <= self.prompt_classification_weight < math.inf,
            "temperature": not 0 < self.temperature < math.inf,
            "dropout": not 0 <= self.dropout < 1,
            "n_altered": self.n_altered < 0,
            "learning_rate": not 0 < self.learning_rate < math.inf,
            "weight_decay": not 0 <= self.weight_decay < math.inf,
            "batch_size": self.batch_size < 1,
            "max_epochs": self.max_epochs < 1,
            "patience": self.patience < 1,
        }
        for name in (name for name, bad in wrong.items() if bad):
            raise UserError(f"{name} {getattr(self, name)!r} is out of range; see sayso fit --help")

    def score_embeddings(
        self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]
    ) -> Float[Tensor, " b"]:
        """The trained head's score of each pair, in [0, 1]."""
        return self.head(images, texts)

    def prepare(
        self, study: Study, device: torch.device | str, weights: Path | None = None
    ) -> None:
        """Load CLIP, and the head that `fit` trained.

        Raises: UserError: if the head was trained on another CLIP or its weights are damaged.
        """
        super().prepare(study, device)
        if weights is None:
            return
        trained_on = files.read_json(weights / "config.json")["clip_hash"]
        if trained_on != self.clip.hash:
            raise UserError(
                f"{weights} was trained with another CLIP than {study.info.clip_model}; restore "
                "that CLIP, or fit again under another --name"
            )
        self.new_head(seed=0)
        advice = "delete the run and fit again"
        file = weights / "model.safetensors"
        put(self.head, read_tensors(file, advice), file, advice)

    def new_head(self, seed: int) -> None:
        """Start from random weights."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            interaction = self.joining == "interaction"
            width, dropout = self.clip.width, self.dropout
            head = _Head(width, self.hidden_width, interaction=interaction, dropout=dropout)
        self.head = head.to(self.clip.device).requires_grad_(False).eval()

    def fit(self, study: Study, data: RatedSamples, run: Run) -> dict[str, object]:
        """Train the head with AdamW; the epoch with the smallest held-out squared error is kept."""
        with torch.random.fork_rng():
            torch.manual_seed(study.info.seed)
            facts = _Fit(self, study, data, run).run()
        with files.new_folder(run.weights) as folder:
            save_file(self.head.state_dict(), folder / "model.safetensors")
            files.write_json(folder / "config.json", {**asdict(self), "clip_hash": self.clip.hash})
        return facts


class _Fit:
    """One training of a head: the data as tensors, the optimiser, the position."""

    def __init__(self, reward: ClipHead, study: Study, data: RatedSamples, run: Run) -> None:
        self.reward, self.log_to = reward, run
        device, texts = reward.clip.device, [p.text for p in data.prompts]
        self.prompts = data.prompts
        self.texts = reward.clip.texts(texts)
        self.images = embed_samples(study, reward.clip, data.samples).to(device)
        self.labels = torch.tensor(data.labels, device=device)
        self.heldout = torch.tensor(data.heldout)
        self.grammar = _grammar(reward, study)
        self.rng = np.random.default_rng([study.info.seed, 3])
        reward.new_head(study.info.seed)
        if reward.joining == "interaction":
            self._centre()
        self.optimizer = torch.optim.AdamW(
            reward.head.parameters(), reward.learning_rate, weight_decay=reward.weight_decay
        )
        chosen = reward.mixed_precision
        self.bf16 = (best_precision() if chosen == "auto" else chosen) == "bf16"
        self.step = 0

    def run(self) -> dict[str, object]:
        """Train until the held-out error stops falling; leave the best weights in the head."""
        reward, head = self.reward, self.reward.head
        best, best_epoch, best_error, epoch = head.state_dict(), 0, math.inf, 0
        head.requires_grad_(True)
        with progress("training the reward", reward.max_epochs, "epochs") as advance:
            while epoch < reward.max_epochs and epoch - best_epoch < reward.patience:
                epoch += 1
                losses, error = self._epoch(), self._heldout_error()
                self.log_to.log(epoch, **losses, heldout_squared_error=error)
                advance(1, f"held-out error {error:.3f}")
                if error < best_error:
                    best_epoch, best_error = epoch, error
                    best = {name: value.clone() for name, value in head.state_dict().items()}
        head.load_state_dict(best)
        head.requires_grad_(False)
        return self._facts(best_epoch, epoch)

    def _centre(self) -> None:
        """Give the head the mean embeddings of the rows that are not held out."""
        head, rows = self.reward.head, ~self.heldout.to(self.images.device)
        head.image_mean.copy_(F.normalize(self.images[rows], dim=1).mean(0))
        head.text_mean.copy_(F.normalize(self.texts[rows], dim=1).mean(0))
        cosines = F.cosine_similarity(self.images[rows], self.texts[rows], dim=1)
        head.cosine_mean.copy_(cosines.mean())

    def _epoch(self) -> dict[str, float]:
        """One pass over the rows that are not held out; the mean of each loss."""
        rows = torch.nonzero(~self.heldout)[:, 0].numpy()
        batches = torch.from_numpy(self.rng.permutation(rows)).split(self.reward.batch_size)
        self.reward.head.train()
        logged = [self._update(batch) for batch in batches]
        self.reward.head.eval()
        names = dict.fromkeys(name for losses in logged for name in losses)
        return {n: float(np.mean([row[n] for row in logged if n in row])) for n in names}

    def _update(self, rows: Tensor) -> dict[str, float]:
        self.step += 1
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self._losses(rows)
        weight = self.reward.prompt_classification_weight
        loss = losses["squared_error"] + weight * losses.get("prompt_classification_loss", 0)
        if not loss.isfinite():
            raise UserError(
                f"the reward's loss is NaN or infinite at step {self.step}; lower --learning-rate, "
                "or look for damaged images"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _losses(self, rows: Tensor) -> dict[str, Tensor]:
        scores = self.reward.head(self.images[rows], self.texts[rows])
        losses = {"squared_error": squared_error(scores, self.labels[rows]).mean()}
        good = self.labels[rows] > 0.5
        if self.classifies and good.any():
            altered_scores = self._altered_scores(rows[good.cpu()])
            candidates = torch.cat([scores[good][:, None], altered_scores], dim=1)
            by_image = prompt_classification_loss(candidates, temperature=self.reward.temperature)
            losses["prompt_classification_loss"] = by_image.mean()
        return losses

    def _altered_scores(self, rows: Tensor) -> Float[Tensor, "g n"]:
        """Scores of images against freshly altered prompts; −inf where there are fewer than n."""
        n = self.reward.n_altered
        texts, present = [], []
        for row in rows.tolist():
            found = self._altered(self.prompts[row])
            # any text will do where the score is struck out
            texts += found + [self.prompts[row].text] * (n - len(found))
            present.append([i < len(found) for i in range(n)])
        images = self.images[rows].repeat_interleave(n, dim=0)
        scores = self.reward.head(images, self.reward.clip.texts(texts)).view(len(rows), n)
        return scores.masked_fill(~torch.tensor(present, device=scores.device), -math.inf)

    def _altered(self, prompt: Prompt) -> list[str]:
        if self.grammar is None or not prompt.slots:
            return []
        return altered(prompt, self.grammar, self.reward.n_altered, self.rng)

    @property
    def classifies(self) -> bool:
        """Whether there is prompt classification at all."""
        reward = self.reward
        wanted = reward.prompt_classification_weight > 0 and reward.n_altered > 0
        return wanted and self.grammar is not None and any(p.slots for p in self.prompts)

    @torch.no_grad()
    def _heldout_error(self) -> float:
        rows = self.heldout
        scores = self.reward.head(self.images[rows], self.texts[rows])
        return float(squared_error(scores, self.labels[rows]).mean())

    def _facts(self, best_epoch: int, epochs: int) -> dict[str, object]:
        return {
            "best_epoch": best_epoch,
            "epochs": epochs,
            "steps": self.step,
            "parameters": sum(p.numel() for p in self.reward.head.parameters()),
            "prompt_classification": self.classifies,
            "bf16": self.bf16,
            "clip": {"width": self.reward.clip.width, "hash": self.reward.clip.hash},
        }


def _grammar(reward: ClipHead, study: Study) -> Grammar | None:
    """The words that alter prompts: of the set asked for, or of that the prompts were made from."""
    if reward.grammar:
        return load_grammar(reward.grammar)
    try:
        config = study.find_run("prompts").config
    except UserError:
        return None
    return None if config["file"] else load_grammar(config["set"])
