"""Work: all that an aligner works with."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sayso.aligners._batch import Batch
from sayso.base.types import Sampler, digest
from sayso.data.pairs import Pairs
from sayso.data.rows import EMPTY, TrainingRows
from sayso.families import Policy, join, mean_squared_error, root_mean_square
from sayso.rewards import Reward


def _alone(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Work:
    """What an aligner works with: models, reward, data, its place among the processes, the steps.

    All chance of a step comes from `generator(step)`, which is the same in every process: draw for
    all rows of the step and keep `share` of them. So a resumed run needs only the step, and one
    process learns what several learn.

    Args:
        policy: the model being trained; `prediction` gives what it, the reference and older selves
            predict.
        data: the rows, see `TrainingRows`.
        batch_size: rows of an update, over all processes, pre-training rows not counted.
        max_steps: updates in all.
        seed: of the training.
        start_step: the first step to make, 0 at the beginning.
        n_pretraining: pre-training rows of an update, over all processes.
        pairs: preferences between images of `data`, for aligners that need "pairs".
        prompts: texts to draw images for, for aligners that need "rollouts".
        reward: for aligners that need it in the loop ("rollouts" or "gradient").
        sampler: how images are drawn: those that are learned from, else those of the study.
        micro_batch: rows that are computed at once.
        rank, world: this process and how many there are.
        gather: joins a tensor of every process along the first dimension, in the order of ranks;
            all must have the same shape.
    """

    policy: Policy
    data: TrainingRows
    batch_size: int
    max_steps: int
    seed: int
    start_step: int = 0
    n_pretraining: int = 0
    pairs: Pairs | None = None
    prompts: Sequence[str] = ()
    reward: Reward | None = None
    sampler: Sampler = field(default_factory=Sampler)
    micro_batch: int = 64
    rank: int = 0
    world: int = 1
    gather: Callable[[Tensor], Tensor] = _alone

    @property
    def steps(self) -> range:
        """The steps still to make: yield one batch for each."""
        return range(self.start_step, self.max_steps)

    def generator(self, step: int, purpose: str = "") -> torch.Generator:
        """The CPU generator of a step; one of its own for each purpose."""
        named = [self.seed, step, *([purpose] if purpose else [])]
        return torch.Generator().manual_seed(int(digest(named), 16))

    def share(self, n: int, unit: int = 1) -> slice:
        """Which of n rows are this process's: units as even as can be, the first get one more."""
        units, more = divmod(n // unit, self.world)
        start = self.rank * units + min(self.rank, more)
        return slice(start * unit, (start + units + (self.rank < more)) * unit)

    def denoising_batch(
        self,
        indices: Int[Tensor, " b"],
        generator: torch.Generator,
        *,
        prompt_dropout: float = 0.0,
        unit: int = 1,
        **columns: Tensor,
    ) -> Batch:
        """This process's share of the rows `indices`, with noise and t, and of pre-training rows.

        t, noise and dropout are drawn for all rows of the step, once for each unit.

        Args:
            indices: rows of `data`, of all processes.
            generator: gives pre-training rows, t, noise and dropout.
            prompt_dropout: probability, in [0, 1], of the empty prompt in place of the row's own:
                it keeps classifier-free guidance working.
            unit: how many rows share t, noise and dropout and stay together.
            columns: more tensors of b rows, of all processes.
        """
        if self.n_pretraining and self.data.bucket is not None:
            alone = replace(self, n_pretraining=0)
            own = alone.denoising_batch(
                indices, generator, prompt_dropout=prompt_dropout, unit=unit, **columns
            )
            more = self._bucket_batch(generator, len(indices), unit, prompt_dropout)
            return Batch(own.tensors, more)
        pretraining = self._pretraining_indices(generator)
        drawn = self._draw(len(indices) // unit + len(pretraining), generator, prompt_dropout)
        t, noise, dropped = (x[: len(indices) // unit].repeat_interleave(unit, 0) for x in drawn)
        mine = self.share(len(indices), unit)
        rest = self._pretraining_share(len(indices), unit)
        rows = self._rows(indices[mine], t[mine], noise[mine], dropped[mine])
        own = {name: column[mine] for name, column in columns.items()}
        if not len(pretraining):
            return rows.plus(**own)
        t, noise, dropped = (x[len(indices) // unit :][rest] for x in drawn)
        return Batch({**rows.tensors, **own}, self._rows(pretraining[rest], t, noise, dropped))

    def pretraining_batch(self, step: int, unit: int = 1) -> Batch | None:
        """Pre-training rows for a batch that was made without; None if none are wanted."""
        if not self.n_pretraining:
            return None
        generator = self.generator(step, "pretraining")
        if self.data.bucket is not None:
            return self._bucket_batch(generator, self.batch_size, unit, 0.0)
        pretraining, rest = (
            self._pretraining_indices(generator),
            self._pretraining_share(self.batch_size, unit),
        )
        drawn = self._draw(len(pretraining), generator, 0.0)
        t, noise, dropped = (x[rest] for x in drawn)
        return self._rows(pretraining[rest], t, noise, dropped)

    def _pretraining_indices(self, generator: torch.Generator) -> Tensor:
        if not self.n_pretraining:
            return torch.zeros(0, dtype=torch.long)
        pretraining = self.data.pretraining
        return pretraining[stratified(self.data.shares(), self.n_pretraining, generator)]

    def _bucket_batch(self, generator: torch.Generator, n: int, unit: int, dropout: float) -> Batch:
        """This process's pre-training rows, all of one bucket, the same in every process.

        A bucket comes with probability in proportion to its images, or to what they count, so every
        image is as frequent as without buckets.

        Args:
            n: rows of the aligner, of all processes.
        """
        bucket, data = self.data.bucket, self.data
        assert bucket is not None
        counts = torch.bincount(bucket, data.shares(), minlength=len(data.sizes))
        number = int(stratified(counts, 1, generator))
        places = (bucket == number).nonzero()[:, 0]
        chosen = stratified(data.shares(places), self.n_pretraining, generator)
        rows = data.pretraining[places[chosen]]
        sampler = replace(self.sampler, image_size=data.sizes[number])
        drawn = self._draw(len(rows), generator, dropout, sampler)
        mine = self._pretraining_share(n, unit)
        t, noise, dropped = (x[mine] for x in drawn)
        return self._rows(rows[mine], t, noise, dropped, sampler)

    def _pretraining_share(self, n: int, unit: int) -> slice:
        """Which pre-training rows are this process's: those that fill its share of all rows up."""
        share = (n + self.n_pretraining) // self.world
        own = self.share(n, unit)
        start = self.rank * share - own.start
        return slice(start, start + share - (own.stop - own.start))

    def _draw(
        self, b: int, generator: torch.Generator, dropout: float, sampler: Sampler | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """t, noise and dropout; of rows of another size than the samples' with its sampler."""
        t = self.policy.draw_t(b, generator, sampler or self.sampler)
        shape = self.policy.latent_shape(sampler.image_size) if sampler else self._latent_shape
        noise = torch.randn((b, *shape), generator=generator)
        return t, noise, torch.rand(b, generator=generator) < dropout

    @cached_property
    def _latent_shape(self) -> torch.Size:
        return self.data.latents[torch.tensor([0])].shape[1:]

    def _rows(
        self,
        indices: Tensor,
        t: Tensor,
        noise: Tensor,
        dropped: Tensor,
        sampler: Sampler | None = None,
    ) -> Batch:
        text = torch.where(dropped, EMPTY, self.data.text[indices])
        latents = self.data.latents[indices].float()
        cond = self.policy.with_sampler(self.data.cond(text), sampler or self.sampler)
        return Batch.of(cond, latents=latents, noise=noise, t=t)

    # what models say of a batch

    def prediction(self, batch: Batch, model: str = "policy") -> Float[Tensor, "b c h w"]:
        """What a model predicts for the rows, computed once however often it is asked for.

        Args:
            model: "policy", "reference", or the name of an older self (`Policy.remember`); only the
                policy's has a gradient.
        """
        if model not in batch.predicted:
            with self._as(model):
                predict_together(self.policy, [batch], model)
        return batch.predicted[model]

    def error(self, batch: Batch, model: str = "policy") -> Float[Tensor, " b"]:
        """Mean squared error of a model's prediction for each row of `denoising_batch`, in fp32."""
        return mean_squared_error(self.prediction(batch, model), self.target(batch))

    def target(self, batch: Batch) -> Float[Tensor, "b c h w"]:
        """What should be predicted for the rows of `denoising_batch`."""
        return self.policy.target(batch["latents"], batch["noise"], batch["t"])

    def norm(self, batch: Batch) -> Float[Tensor, ""]:
        """How large predictions are against their targets: a mean of ratios, for the log.

        A model predicts a mean, so it is below 1. In the first step it is that of the frozen start;
        above it images become over-saturated and over-sharp.
        """
        ours, wanted = (
            root_mean_square(x.detach()) for x in (self.prediction(batch), self.target(batch))
        )
        return (ours / wanted).mean()

    def _as(self, model: str) -> AbstractContextManager[None]:
        if model == "policy":
            return nullcontext()
        return self.policy.reference() if model == "reference" else self.policy.old(model)


def predict_together(policy: Policy, batches: Sequence[Batch], model: str = "policy") -> None:
    """Predict for the rows of several batches in one pass; see `Batch.predicted`."""
    inputs = [_inputs(policy, batch) for batch in batches]
    noisy, t = torch.cat([own[0] for own in inputs]), torch.cat([own[1] for own in inputs])
    cond = join([own[2] for own in inputs])
    rows = policy.predict(noisy, t, cond).split([len(own[1]) for own in inputs])
    for batch, prediction in zip(batches, rows, strict=True):
        if "guidance" in batch:
            without, within = prediction.chunk(2)
            scale = batch["guidance"].reshape(-1, *[1] * (within.ndim - 1))
            prediction = policy.combine(within, without, scale)
        batch.predicted[model] = prediction


def _inputs(policy: Policy, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What the network is shown: with guidance every row twice, first with the negative prompt."""
    t, cond = batch["t"], batch.cond
    if "noisy" in batch:
        noisy = batch["noisy"]
    else:
        noisy = policy.add_noise(batch["latents"], batch["noise"], t)
    if "guidance" not in batch:
        return noisy, t, cond
    return torch.cat([noisy, noisy]), t.repeat(2), join([batch.uncond, cond])


def means_of(values: Float[Tensor, " b"], **rows: Tensor) -> dict[str, Tensor]:
    """The mean of the values of the rows of each name, of those that there are; for the log."""
    return {name: values[some].mean() for name, some in rows.items() if some.any()}


def prompt_means(values: Float[Tensor, " n"], prompt: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """For each image the mean of the values of all images of its prompt.

    Args:
        prompt: which prompt each image was drawn for.
    """
    _, place = prompt.unique(return_inverse=True)
    n = torch.bincount(place)
    return (torch.zeros(len(n)).index_add(0, place, values) / n)[place]


def stratified(
    weights: Float[Tensor, " n"], count: int, generator: torch.Generator
) -> Int[Tensor, " count"]:
    """Draw `count` indices with probability in proportion to `weights`, one from each stratum.

    The k-th comes from the k-th of `count` equal parts of the cumulated weights, so every index is
    expected exactly count · weight / sum times, with less chance than independent draws.

    Raises: ValueError: if the weights are negative, not finite or all 0.
    """
    if not (weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError("weights must be finite, not negative and not all 0")
    ends = weights.double().cumsum(0)
    places = (torch.arange(count) + torch.rand(count, generator=generator).double()) / count
    # the first whose end is beyond the place; one of weight 0 ends where the one before it does
    return torch.searchsorted(ends, places * ends[-1], right=True)
