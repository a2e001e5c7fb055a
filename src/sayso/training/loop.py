"""THE optimisation loop: one for every aligner, so that comparing algorithms is fair."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from sayso.aligners import Aligner, Batch, Context
from sayso.base import files
from sayso.base.errors import UserError
from sayso.base.progress import console, progress
from sayso.families import Policy
from sayso.study.run import Run
from sayso.training import checkpoint
from sayso.training.options import TrainOptions

READ_EVERY = 10
"""Steps between two looks at the losses: reading one waits for the device."""


def learning_rate_at(step: int, options: TrainOptions) -> float:
    """Learning rate of a step (0 is the first): rises, stays, and falls to 0 in the last part."""
    warm = (step + 1) / max(1, options.warmup_steps)
    falling = options.decay_fraction * options.max_steps
    left = (options.max_steps - step) / falling if falling else 1.0
    return options.learning_rate * min(1.0, warm, left)


def train(
    policy: Policy,
    aligner: Aligner,
    context: Context,
    options: TrainOptions,
    run: Run,
    accelerator: Accelerator,
) -> dict[str, float | int]:
    """Train the policy's network and leave the averaged weights in `run.weights` and in the policy.

    Resumes from the run's latest checkpoint; on the same machine the result is bit for bit that of
    an uninterrupted run.

    Returns: steps, seconds and images per second of this process, first and last mean loss.
    Raises: UserError: if the batch does not divide, or the loss or gradient is not finite; the
        step is named, and the checkpoints before it stay.
    """
    loop = _Loop(policy, aligner, options, run, accelerator)
    loop.resume()
    context = replace(context, start_step=loop.step)
    started, first = time.perf_counter(), loop.step
    with loop.saver, progress("aligning", options.max_steps, "steps", done=first) as advance:
        for batch in aligner.batches(context):
            loop.update(batch)
            advance(1, loop.log.note)
            if loop.step % options.checkpoint_every == 0 and loop.step < options.max_steps:
                loop.save_checkpoint()
    loop.finish()
    seconds = time.perf_counter() - started
    images = (loop.step - first) * options.batch_size
    return {"steps": loop.step, "seconds": seconds, "images_per_s": images / seconds} | _ends(run)


def _ends(run: Run) -> dict[str, float]:
    """Mean loss of the first and of the last tenth of the steps."""
    losses = [row["loss"] for row in run.history()]
    n = max(1, len(losses) // 10)
    return {"loss_first": sum(losses[:n]) / n, "loss_last": sum(losses[-n:]) / n}


class _Loop:
    """State of a training: parameters, their average, optimiser, position."""

    def __init__(
        self, policy: Policy, aligner: Aligner, options: TrainOptions, run: Run, acc: Accelerator
    ) -> None:
        self.policy, self.aligner, self.options = policy, aligner, options
        self.run, self.accelerator, self.step = run, acc, 0
        self.micro = options.micro_batch(acc.num_processes)
        self.named = policy.trainable()
        self.parameters: list[Tensor] = [*self.named.values()]
        self.average: list[Tensor] = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, options.learning_rate, weight_decay=options.weight_decay, fused=True
        )
        policy.network.train()
        self.network, self.prepared = acc.prepare(policy.network, self.optimizer)
        policy.network = self.network
        self.log = _Log(run, acc)
        self.saver = checkpoint.Saver(run)

    def resume(self) -> None:
        state = checkpoint.load_latest(self.run, self.contents())
        if state is None:
            return
        self.step = state["step"]
        logged = {row["step"] for row in self.run.history()}
        if missing := self.step - len(logged & set(range(1, self.step + 1))):
            console.print(
                f"log.jsonl of {self.run.name} lacks {missing} of the {self.step} steps so far; "
                "the weights are whole"
            )
        if state.get("inputs", self.run.inputs_hash) != self.run.inputs_hash:
            raise UserError(
                f"inputs.json of {self.run.name} is not what its checkpoints learned from; restore "
                f"it, or delete {self.run.checkpoints} to begin at step 0"
            )
        if self.step >= self.options.max_steps:
            raise UserError(
                f"{self.run.name} has a checkpoint of step {self.step}, beyond --max-steps "
                f"{self.options.max_steps}; give more, or choose another --name"
            )
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def update(self, batch: Batch) -> None:
        """One step on a batch, in micro-batches whose gradients add up to the whole batch's."""
        rate = learning_rate_at(self.step, self.options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scalars, shares = dict[str, Tensor](), dict[str, float]()
        for part, share, last in self._micro_batches(batch):
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                loss, more = self.aligner.loss(self.policy, part)
                self.accelerator.backward(loss * share)
            for name, value in {"loss": loss, **more}.items():
                scalars[name] = scalars.get(name, 0) + share * value.detach().float()
                shares[name] = shares.get(name, 0) + share
        scalars["grad_norm"], shares["grad_norm"] = self._clip(), 1.0
        self.prepared.step()
        self.prepared.zero_grad()
        self._average()
        self.step += 1
        self.log.add(_Logged(self.step, rate, len(batch), scalars, shares))

    def _micro_batches(self, batch: Batch) -> Iterable[tuple[Batch, float, bool]]:
        """This process's micro-batches, their share in it, and whether one is the last."""
        if len(batch) != self.options.batch_size:
            raise UserError(
                f"aligner {type(self.aligner).__name__} made a batch of {len(batch)} rows, "
                f"batch_size is {self.options.batch_size}; make them equal"
            )
        size = len(batch) // self.accelerator.num_processes
        start = self.accelerator.process_index * size
        for at in range(start, start + size, self.micro):
            part = batch.rows(slice(at, at + self.micro)).to(self.policy.device)
            yield part, self.micro / size, at + self.micro == start + size

    def _clip(self) -> Tensor:
        longest = self.options.max_grad_norm or math.inf
        norm: Any = self.accelerator.clip_grad_norm_(self.parameters, longest)
        return norm.detach()

    def _average(self) -> None:
        # a young average must forget the start quickly, hence the rising decay
        decay = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)

    def save_checkpoint(self) -> None:
        """Write a checkpoint, and before it the log: never of weights whose loss is unknown."""
        self.saver.wait()
        self.log.flush()
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "scaler": scaler.state_dict() if scaler else None,
            "inputs": self.run.inputs_hash,
        }
        self.saver.save(state, self.contents())

    def contents(self) -> checkpoint.Contents:
        average = dict(zip(self.named, self.average, strict=True))
        return checkpoint.Contents(self.named, self.optimizer, {"average": average})

    def finish(self) -> None:
        """Make the average the policy's weights and write them."""
        self.log.flush()
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
        self.policy.network = self.accelerator.unwrap_model(
            self.network, keep_fp32_wrapper=False
        ).eval()
        if self.accelerator.is_main_process:
            with files.new_folder(self.run.weights) as folder:
                self.policy.save_weights(folder)
        self.accelerator.wait_for_everyone()


class _Logged(NamedTuple):
    """What one process logs of a step.

    `scalars` are sums over the micro-batches, weighted by their share in the batch. `shares` says
    how much of the batch had such a scalar: an aligner may give one for some rows or steps only.
    """

    step: int
    rate: float
    images: int
    scalars: dict[str, Tensor]
    shares: dict[str, float]


def _means(sums: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """The mean of each scalar over the processes and micro-batches that had it.

    Args:
        sums: of each process, name → weighted sum and sum of the weights.
    """
    names = dict.fromkeys(name for own in sums for name in own)
    parts = {name: [own[name] for own in sums if name in own] for name in names}
    return {name: sum(v for v, _ in p) / sum(s for _, s in p) for name, p in parts.items()}


class _Log:
    """Scalars that stay on the device for some steps, and lines that wait for a checkpoint."""

    def __init__(self, run: Run, accelerator: Accelerator) -> None:
        self.run, self.accelerator, self.note = run, accelerator, ""
        self.unread: list[_Logged] = []
        self.lines: list[dict[str, float]] = []
        self.since = time.perf_counter()

    def add(self, logged: _Logged) -> None:
        self.unread.append(logged)
        if len(self.unread) == READ_EVERY:
            self.read()

    def read(self) -> None:
        """Fetch the scalars of the last steps, all in one go, and look whether they are finite."""
        if not self.unread:
            return
        values = iter(
            torch.stack([v for row in self.unread for v in row.scalars.values()]).tolist()
        )
        own = [{n: (next(values), row.shares[n]) for n in row.scalars} for row in self.unread]
        # each step and process has its own names, so objects are gathered, not one tensor reduced
        everyone = gather_object([own])
        speed = sum(row.images for row in self.unread) / (time.perf_counter() - self.since)
        for row, sums in zip(self.unread, zip(*everyone, strict=True), strict=True):
            named = _means(sums)
            self._check(row.step, named)
            more = {"learning_rate": row.rate, "images_per_s": speed}
            self.lines.append({"step": row.step, **named, **more})
        self.note = f"loss {self.lines[-1]['loss']:.4f}"
        self.unread, self.since = [], time.perf_counter()

    def _check(self, step: int, named: dict[str, float]) -> None:
        # with fp16 an infinite gradient is an ordinary event: the scaler skips the step
        watched = ["loss"] if self.accelerator.scaler is not None else ["loss", "grad_norm"]
        for name in watched:
            if not math.isfinite(named[name]):
                last = self.run.latest_checkpoint
                kept = (
                    f"the checkpoint of step {last.name} is kept" if last else "nothing was saved"
                )
                raise UserError(
                    f"{name} is {named[name]} at step {step}: training stopped, {kept}; "
                    f"{self._advice(step)} under another --name"
                )

    def _advice(self, step: int) -> str:
        """The first step's loss is that of the weights as they were: no learning rate mends it."""
        if step > 1:
            return "try a lower --learning-rate"
        precision = self.accelerator.mixed_precision
        if precision == "no":
            return (
                "the model or the aligner's options are at fault: restore or change them, and go on"
            )
        return f"{precision} does not suffice: try --mixed-precision no"

    def flush(self) -> None:
        """Write the lines so far."""
        self.read()
        if self.lines and self.accelerator.is_main_process:
            self.run.log_many(self.lines)
        self.lines = []
