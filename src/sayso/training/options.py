"""Options of the optimisation loop, the same for every aligner. No torch: the CLI reads it."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from sayso.base.errors import UserError, unknown_name
from sayso.base.extras import need, need_tracker
from sayso.base.records import check_choices
from sayso.base.samplers import TimestepSampling
from sayso.base.user_files import read_text_lines

Options = TypeVar("Options", bound="TrainOptions")


@dataclass(frozen=True)
class TrainOptions:
    """How long, how fast and in which chunks to train."""

    portions: ClassVar = frozenset(
        {
            "micro_batch_size",
            "checkpoint_every",
            "ema_on_cpu",
            "gradient_checkpointing",
            "sharding",
            "tracker",
            "sample_every",
            "sample_prompts",
        }
    )
    may_grow: ClassVar = frozenset({"max_steps"})

    max_steps: int = 1000
    """Number of updates; 10,000 in the paper."""
    batch_size: int = 64
    """Rows per update, over all processes; 512 in the paper."""
    micro_batch_size: int = 0
    """Rows computed at once on one device, to save memory; 0 = all rows of a process."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW; default: the aligner's, or 5e-4. The paper does not give it;
    1e-5 suits Stable Diffusion 1.5."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises from 0."""
    decay_fraction: float = 0.33
    """Fraction of the steps, at the end, over which the learning rate falls to 0; 0 = constant."""
    ema_decay: float = 0.99
    """Decay of the moving average of the weights, which is the result; 0 = no average, the last
    weights are the result."""
    ema_on_cpu: bool = False
    """Keep the moving average in main memory instead of on the device."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps AdamW's moments in 8 bits, a quarter of the memory; the weights stay fp32. It
    needs the extra sayso[quantised], and helps most if the whole network is trained."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW. It pulls weights to 0 whatever the rewards are, so it is off
    by default (1e-2 is usual): if all rewards are 0, the weights do not change."""
    max_grad_norm: float = 1.0
    """Maximum norm of the gradient; longer gradients are scaled down to it. 0 = no limit."""
    pretraining_weight: float | None = None
    """Weight of the denoising loss on pre-training images, for any aligner; the paper's beta, whose
    value it does not give. Default: 0.15 for rwr, 0 for the others."""
    pretraining_fraction: float = 0.125
    """Share of pre-training images in a batch, if their weight is not 0; 0.5 in the paper."""
    pretraining_draw: Literal["uniform", "reward"] = "uniform"
    """How often each pre-training image is trained on: uniform, all equally often, as in the paper;
    or reward, in proportion to the reward of the image for its own caption, so that images with
    wrong captions hardly count."""
    kl_weight: float = 0.0
    """Weight of the mean squared difference between the predictions of the model and of its frozen
    start, which keeps the model near it. 0 = off; 1e-4 to 1e-2 are usual."""
    norm_guard: float = 0.0
    """Weight of a hinge loss on predictions larger than those of the frozen start, which lead to
    over-saturated and over-sharp images. 0 = off."""
    timestep_sampling: Literal["auto", TimestepSampling] = "auto"
    """Times to train at: uniform, logit_normal, or grid (those of the study's sampler). auto = the
    family's: uniform for Stable Diffusion 1, 2 and XL, logit_normal for 3, grid for the others.
    Flow models shift the first two as they do for sampling."""
    gradient_checkpointing: bool = False
    """Recompute parts of the network instead of storing them: less memory, a third slower."""
    sharding: Literal["auto", "none", "full"] = "auto"
    """How several processes hold the network: none = a full copy each (DDP); full = a shard each
    of the weights, gradients and moments (FSDP2), which takes less memory and more communication;
    auto = full if a full copy would not fit on a device."""
    compile: bool = False
    """Compile the network with torch.compile: a slow start, then faster steps on a GPU."""
    checkpoint_every: int = 100
    """Steps between checkpoints, from which a stopped run resumes."""
    tracker: str = ""
    """Where log.jsonl's scalars also go while the run trains: tensorboard, wandb or trackio, or
    several with commas between. tensorboard needs the extra sayso[trackers]."""
    sample_every: int = 0
    """Steps between sample grids: a few prompts, drawn from the same noise each time with the
    current weights, as a picture in the run's folder samples/, and in the trackers; 0 = none."""
    sample_prompts: str = ""
    """File with the prompts of the sample grids, one a line; default: eight of the prompts that are
    trained on."""

    def check(self) -> None:
        """Raises: UserError: naming the first option that is out of range."""
        check_choices(self)
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise UserError(f"{name} {getattr(self, name)} is too small; give at least {least}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay {self.ema_decay} is not in [0, 1); try 0.99")
        if not 0 <= self.decay_fraction <= 1:
            raise UserError(f"decay_fraction {self.decay_fraction} is not in [0, 1]; try 0.33")
        rate = self.learning_rate
        if rate is not None and not 0 < rate < float("inf"):
            raise UserError(f"learning_rate {rate} must be above 0; try 1e-5")
        if not 0 <= self.pretraining_fraction < 1:
            raise UserError(
                f"pretraining_fraction {self.pretraining_fraction} is not in [0, 1); try 0.1"
            )
        for name in ("pretraining_weight", "kl_weight", "norm_guard"):
            weight = getattr(self, name)
            if weight is not None and not 0 <= weight < float("inf"):
                raise UserError(f"{name} {weight} must be at least 0")
        if self.optimizer == "adamw8bit":
            need("quantised", "align --optimizer adamw8bit")
        trackers_of(self.tracker)
        self.prompts_of_grids()
        self.micro_batch(processes=1)

    def prompts_of_grids(self) -> list[str]:
        """The prompts that `sample_prompts` gives for the sample grids; none if it is empty.

        Raises: UserError: if the file cannot be used, or there are to be no grids.
        """
        if not self.sample_prompts:
            return []
        if not self.sample_every:
            raise UserError("sample_prompts are for sample grids; give --sample-every too")
        found = read_text_lines(Path(self.sample_prompts).expanduser())
        if not 1 <= len(found) <= MOST_PROMPTS:
            raise UserError(
                f"{self.sample_prompts} has {len(found)} prompts; give 1 to {MOST_PROMPTS}, one a "
                "line"
            )
        return found

    def for_aligner(self: Options, defaults: Mapping[str, float]) -> Options:
        """These options with an aligner's defaults in place of None."""
        missing = {k: v for k, v in (COMMON | dict(defaults)).items() if getattr(self, k) is None}
        return replace(self, **missing)

    @property
    def uses_reference(self) -> bool:
        """Whether the loss asks what the frozen start predicts."""
        return self.kl_weight > 0 or self.norm_guard > 0

    @property
    def uses_pretraining(self) -> bool:
        """Whether pre-training images are trained on, given the weight."""
        return bool(self.pretraining_weight) and self.pretraining_fraction > 0

    def needs(self, aligner: AbstractSet[str]) -> AbstractSet[str]:
        """What a training needs: what the aligner does, and what these options do."""
        rewarded = self.uses_pretraining and self.pretraining_draw == "reward"
        return aligner | ({"reward"} if rewarded else set())

    def n_pretraining(self, unit: int = 1) -> int:
        """Pre-training rows of a batch: one at least if any, and never all.

        Args:
            unit: the other rows are a multiple of it.
        Raises: UserError: if no other row is left.
        """
        if not self.uses_pretraining:
            return 0
        n = max(1, round(self.pretraining_fraction * self.batch_size))
        n += (self.batch_size - n) % unit
        if n >= self.batch_size:
            raise UserError(
                f"pretraining_fraction {self.pretraining_fraction} leaves no room for other rows "
                f"in a batch of {self.batch_size}; give a smaller fraction or a larger batch_size"
            )
        return n

    def check_unit(self, unit: int, processes: int, aligner: str) -> None:
        """Raises: UserError: if rows that stay together do not divide a batch, naming what does."""
        micro = self.micro_batch(processes)
        if micro % unit == 0:
            return
        share = self.batch_size // processes
        fitting = [n for n in range(unit, share + 1, unit) if share % n == 0]
        if share % unit or not fitting:
            whole = unit * processes
            near = max(whole, self.batch_size // whole * whole)
            raise UserError(
                f"aligner {aligner} keeps {unit} rows together, and batch_size {self.batch_size} "
                f"is not a multiple of {processes} processes × {unit}; give --batch-size {near} "
                f"or {near + whole}"
            )
        raise UserError(
            f"aligner {aligner} keeps {unit} rows together, and micro_batch_size {micro} is not a "
            f"multiple of {unit}; give --micro-batch-size {' or '.join(map(str, fitting[-3:]))}"
        )

    def check_shares(self, unit: int, processes: int) -> None:
        """Check that with shards each process has as many rows of each kind as every other.

        Where one asks a network for a prediction all must, for each gives its shard.

        Raises: UserError: if not.
        """
        n, whole = self.n_pretraining(unit), unit * processes
        if (self.batch_size - n) % whole:
            raise UserError(
                f"with sharding full each of {processes} processes needs as many pre-training rows "
                f"as the others, and batch_size {self.batch_size} has {n}; give a "
                f"--pretraining-fraction that makes them a multiple of {whole}, or --sharding none"
            )

    def micro_batch(self, processes: int) -> int:
        """Rows a process computes at once.

        Raises: UserError: if the batch does not divide evenly.
        """
        share, rest = divmod(self.batch_size, processes)
        micro = self.micro_batch_size or share
        if rest:
            near = max(processes, self.batch_size - rest)
            raise UserError(
                f"batch_size {self.batch_size} is not a multiple of {processes} processes; give "
                f"--batch-size {near} or {near + processes}, or start another number of processes"
            )
        if share % micro:
            raise UserError(
                f"batch_size {self.batch_size} is not a multiple of {processes} processes × "
                f"micro_batch_size {micro}; change one of them"
            )
        return micro


def trackers_of(text: str) -> tuple[str, ...]:
    """The trackers that an option names, with commas between, each once.

    Raises: UserError: if there is none of that name, or its package is not installed.
    """
    named = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in named:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
        need_tracker(name)
    return named


MOST_PROMPTS = 64
"""On a sample grid."""
TRACKERS = ("tensorboard", "wandb", "trackio")
COMMON = {"learning_rate": 5e-4, "pretraining_weight": 0.0}
"""What an aligner that says nothing else is trained with, where an option is None."""
_LEAST = {
    "max_steps": 1, "batch_size": 1, "micro_batch_size": 0, "warmup_steps": 0,
    "weight_decay": 0, "max_grad_norm": 0, "checkpoint_every": 1, "sample_every": 0,
}  # fmt: skip
