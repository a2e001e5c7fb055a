"""THE optimisation loop: one for every aligner, so that comparing algorithms is fair."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sayso.aligners import Aligner, Batch, Work
from sayso.base import files
from sayso.base.devices import agreed, memory_bytes
from sayso.base.errors import UserError
from sayso.base.progress import console, progress
from sayso.data.prefetch import prefetched
from sayso.study.run import Run
from sayso.training import checkpoint
from sayso.training.evaluations import Evaluations
from sayso.training.log import Log, logged
from sayso.training.needs import check_rows
from sayso.training.objective import Part, Term, objective
from sayso.training.optimizers import make_optimizer
from sayso.training.options import COMMON, TrainOptions, trackers_of
from sayso.training.sample_grids import SampleGrids
from sayso.training.spread import Sharded, is_sharded, spread
from sayso.training.trackers import Trackers


def learning_rate_at(step: int, options: TrainOptions) -> float:
    """Learning rate of a step (0 is the first): rises, stays, and falls to 0 in the last part."""
    warm = (step + 1) / max(1, options.warmup_steps)
    falling = options.decay_fraction * options.max_steps
    left = (options.max_steps - step) / falling if falling else 1.0
    return (options.learning_rate or COMMON["learning_rate"]) * min(1.0, warm, left)


def train(
    work: Work,
    aligner: Aligner,
    options: TrainOptions,
    run: Run,
    accelerator: Accelerator,
    grids: SampleGrids | None = None,
) -> dict[str, float | int]:
    """Train the policy's network and leave the averaged weights in `run.weights` and in the policy.

    Resumes from the run's latest checkpoint; on the same machine the result is bit for bit that of
    an uninterrupted run.

    Args:
        work: what to learn from; its place among the processes, sizes and steps are set here.
        aligner: the algorithm.
        options: how long, how fast, in what portions.
        run: where it is written.
        accelerator: device, number format and processes.
        grids: draws some prompts now and then; it changes nothing of the training.
    Returns: steps, seconds and images per second of this process, first and last mean loss, and
        network evaluations of all processes (see `Evaluations`).
    Raises: UserError: if the batch does not divide, or the loss or gradient is not finite; the
        step is named, and the checkpoints before it stay.
    """
    options = options.for_aligner(aligner.defaults)
    work = placed(work, aligner, options, accelerator)
    loop = _Loop(work, aligner, options, run, accelerator)
    loop.resume()
    started, first = time.perf_counter(), loop.step
    batches = _ahead(aligner, replace(work, start_step=first))
    with (
        loop.saver,
        loop.evaluations,
        loop.trackers.begun(first),
        progress("aligning", options.max_steps, "steps", done=first) as advance,
    ):
        if not first:
            loop.sample(grids)
        for batch in batches:
            loop.update(batch)
            advance(1, loop.log.note)
            loop.sample(grids)
            loop.save_in_time()
        loop.log.flush()
    loop.finish()
    seconds = time.perf_counter() - started
    images = (loop.step - first) * options.batch_size
    found = {"steps": loop.step, "seconds": seconds, "images_per_s": images / seconds}
    return found | loop.evaluations.counted() | _ends(run)


def _ahead(aligner: Aligner, work: Work) -> Iterator[Batch]:
    """The batches with their pre-training rows, on the device.

    They are made in a thread where they do not hang on the updates before them, and where the
    arithmetic is not the processor's own: there the thread takes a fifth of its speed.
    """
    batches = enumerate(aligner.batches(work), work.start_step)

    def ready(numbered: tuple[int, Batch]) -> Batch:
        step, batch = numbered
        pretraining = batch.pretraining
        if pretraining is None:
            pretraining = work.pretraining_batch(step, aligner.unit)
        return Batch(batch.tensors, pretraining).to(work.policy.device)

    after_updates = aligner.required() & {"rollouts", "old", "weights"}
    if after_updates or work.policy.device.type == "cpu":
        return map(ready, batches)
    return prefetched(batches, ready)


def placed(work: Work, aligner: Aligner, options: TrainOptions, accelerator: Accelerator) -> Work:
    """`work` with sizes from the options and this process's place.

    Raises: UserError: if the rows cannot be shared out so.
    """
    check_rows(options, aligner, accelerator.num_processes)
    n_pretraining = options.n_pretraining(aligner.unit)
    if n_pretraining and not len(work.data.pretraining):
        raise UserError("there are no pre-training images; give --pretraining-weight 0")
    return replace(
        work,
        batch_size=options.batch_size - n_pretraining,
        n_pretraining=n_pretraining,
        max_steps=options.max_steps,
        micro_batch=options.micro_batch(accelerator.num_processes),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        gather=accelerator.gather,
    )


def _ends(run: Run) -> dict[str, float]:
    """Mean loss of the first and of the last tenth of the steps."""
    losses = [row["loss"] for row in run.history()]
    n = max(1, len(losses) // 10)
    return {"loss_first": sum(losses[:n]) / n, "loss_last": sum(losses[-n:]) / n}


class _Loop:
    """State of a training: parameters, their average, optimiser, position."""

    def __init__(
        self, work: Work, aligner: Aligner, options: TrainOptions, run: Run, acc: Accelerator
    ) -> None:
        self.work, self.aligner, self.options = work, aligner, options
        self.run, self.accelerator, self.step, self.saved = run, acc, 0, 0
        self.period = aligner.period(work.batch_size)
        policy = self.policy = work.policy
        if options.gradient_checkpointing:
            _enable_checkpointing(policy.network, policy.network_kind)
            if "gradient" in aligner.required():
                policy.checkpoint_decoder()
        policy.network.train()
        reference = options.uses_reference or "reference" in aligner.required()
        place = acc.num_processes, memory_bytes(acc.device)
        sharded = agreed(is_sharded(options, policy, *place, reference=reference))
        if sharded:
            options.check_shares(aligner.unit, acc.num_processes)
        if reference:
            policy.keep_reference(_autocast_format(acc))
        self.spread = spread(policy, acc, sharded=sharded, compiled=options.compile)
        self.named = policy.trainable()
        self.parameters: list[Tensor] = [*self.named.values()]
        if "old" in aligner.required():
            policy.remember("old")
        device = "cpu" if options.ema_on_cpu else None
        self.average = (
            [p.detach().to(device, copy=True) for p in self.parameters] if options.ema_decay else []
        )
        self.optimizer = make_optimizer(self.parameters, learning_rate_at(0, options), options)
        self.prepared: Any = acc.prepare(self.optimizer)
        self.saver = checkpoint.Saver(run)
        self.evaluations = Evaluations(policy, acc)
        self.trackers = Trackers(run, acc, trackers_of(options.tracker))
        self.log = Log(run, acc, self.saver.wait, self.trackers)

    def resume(self) -> None:
        state = checkpoint.load_latest(self.run, self.contents())
        if state is None:
            return
        self.step = self.saved = state["step"]
        logged = {row["step"] for row in self.run.history()}
        if missing := self.step - len(logged & set(range(1, self.step + 1))):
            console.print(
                f"log.jsonl of {self.run.name} lacks {missing} of the {self.step} steps so far; "
                "the weights are complete"
            )
        if state.get("inputs", self.run.inputs_hash) != self.run.inputs_hash:
            raise UserError(
                f"inputs.json of {self.run.name} is not what its checkpoints learned from; "
                f"restore it, or delete {self.run.checkpoints} to start from step 0"
            )
        if self.step >= self.options.max_steps:
            raise UserError(
                f"{self.run.name} has a checkpoint of step {self.step}, beyond --max-steps "
                f"{self.options.max_steps}; give more, or choose another --name"
            )
        # checkpoints of earlier versions do not say it
        self.evaluations.before = state.get("evaluations")
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def update(self, batch: Batch) -> None:
        """One step on a batch, in micro-batches whose gradients add up to the whole batch's."""
        rate = learning_rate_at(self.step, self.options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        terms = list[tuple[str, Term]]()
        for part, last in self._parts(batch):
            with self.spread.adding_up(last=last):
                loss, more = objective(self.work, self.aligner, self.options, part)
                self.accelerator.backward(loss)
            # the losses of the parts add up to the step's
            terms += [("loss", Term(loss, 0.0)), *more.items()]
        terms.append(("grad_norm", Term(self._clip(), 1.0)))
        self.prepared.step()
        self.prepared.zero_grad()
        self._average()
        self.step += 1
        self.log.add(logged(self.step, rate, self.options.batch_size, terms))

    def _parts(self, batch: Batch) -> Iterable[tuple[Part, bool]]:
        """This process's micro-batches, and whether one is the last.

        Pre-training rows come after the aligner's, and parts are cut from the whole row of both.
        """
        work, unit = self.work, self.aligner.unit
        expected = work.share(work.batch_size, unit)
        if len(batch) != expected.stop - expected.start:
            raise UserError(
                f"aligner {type(self.aligner).__name__} made a batch of {len(batch)} rows, but "
                f"its share is {expected.stop - expected.start} of batch_size {work.batch_size}; "
                "make them equal"
            )
        pretraining = batch.pretraining
        own, size = len(batch), len(batch) + (len(pretraining) if pretraining else 0)
        for at in range(0, size, work.micro_batch):
            end = at + work.micro_batch
            rest = slice(max(at - own, 0), max(end - own, 0))
            yield (
                self._part(batch.rows(slice(at, end)), pretraining and pretraining.rows(rest)),
                end >= size,
            )

    def _part(self, own: Batch, pretraining: Batch | None) -> Part:
        work = self.work
        if pretraining is not None and not len(pretraining):
            pretraining = None
        return Part(
            own,
            len(own) / work.batch_size * work.world,
            pretraining,
            len(pretraining or ()) / max(work.n_pretraining, 1) * work.world,
        )

    def _clip(self) -> Tensor:
        return self.spread.clip(self.parameters, self.options.max_grad_norm or math.inf)

    def _average(self) -> None:
        """Follow the weights; without a decay the weights themselves are the result."""
        if not self.average:
            return
        # a young average must forget the start quickly, hence the rising decay
        decay = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            now = [p.to(mean.device) for p, mean in zip(self.parameters, self.average, strict=True)]
            torch._foreach_lerp_(self.average, now, 1 - decay)

    def sample(self, grids: SampleGrids | None) -> None:
        """Draw a sample grid if it is time; before a checkpoint, so that none is left out."""
        if grids is None or self.step % grids.every:
            return
        # trackers take steps in order only
        self.log.read()
        with self.evaluations.paused():
            grids.draw(
                self.step, self.policy, self.accelerator, self.run, self.trackers,
                sharded=isinstance(self.spread, Sharded), compiled=self.options.compile,
            )  # fmt: skip
        self.log.since = time.perf_counter()

    def save_in_time(self) -> None:
        """Write a checkpoint if it is time, and if all of the last rollout has been learned."""
        since = self.step - self.saved
        if (
            since >= self.options.checkpoint_every
            and self.step % self.period == 0
            and self.step < self.options.max_steps
        ):
            self.save_checkpoint()
            self.saved = self.step

    def save_checkpoint(self) -> None:
        """Write a checkpoint, and before it the log: never of weights whose loss is unknown."""
        self.saver.wait()
        self.log.flush()
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "scaler": scaler.state_dict() if scaler else None,
            "inputs": self.run.inputs_hash,
            **self.evaluations.counted(),
        }
        self.saver.save(state, self.contents())

    def contents(self) -> checkpoint.Contents:
        average = (
            {"average": dict(zip(self.named, self.average, strict=True))} if self.average else {}
        )
        old = {f"older-{name}": values for name, values in self.policy.remembered.items()}
        return checkpoint.Contents(self.named, self.optimizer, {**average, **old})

    def finish(self) -> None:
        """Make the average the policy's weights and write them."""
        with torch.no_grad():
            for parameter, mean in zip(self.parameters, self.average, strict=False):
                parameter.copy_(mean)
        whole, policy = self.spread.whole(), self.policy
        policy.network = self.accelerator.unwrap_model(
            policy.network, keep_fp32_wrapper=False
        ).eval()
        if whole is not None:
            with files.new_folder(self.run.weights) as folder:
                trained, policy.network = policy.network, whole
                policy.save_weights(folder)
                policy.network = trained
        self.accelerator.wait_for_everyone()


def _autocast_format(accelerator: Accelerator) -> torch.dtype | None:
    formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return formats.get(accelerator.mixed_precision)


def _enable_checkpointing(network: Any, kind: str) -> None:
    if not hasattr(network, "enable_gradient_checkpointing"):
        raise UserError(f"this {kind} does not support gradient checkpointing; omit the option")
    network.enable_gradient_checkpointing()
