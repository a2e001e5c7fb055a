"""What the loop takes from aligner, options and processes, and when it saves."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator
from loops import ALIGNER, OPTIONS, differences, half, loop_at, run_at, work
from torch import nn

from sayso.aligners import Aligner, Batch, Work
from sayso.aligners.dpo import DirectPreference
from sayso.aligners.grpo import GroupPolicy
from sayso.aligners.sft import GoodImages
from sayso.base.devices import make_accelerator
from sayso.base.errors import UserError
from sayso.testing import toy_rows, toy_work
from sayso.training import loop as loop_module
from sayso.training.loop import _ahead, _autocast_format, _Loop, placed, train
from sayso.training.options import TrainOptions
from sayso.training.sample_grids import SampleGrids
from sayso.training.spread import Sharded


@dataclasses.dataclass(frozen=True)
class Bare(GoodImages):
    """Its batches bring no pre-training rows."""

    def batches(self, work: Work) -> Iterator[Batch]:
        return (Batch(batch.tensors) for batch in super().batches(work))


@dataclasses.dataclass(frozen=True)
class Behind(GoodImages):
    """Its batches may hang on what the policy was."""

    needs: ClassVar = frozenset({"data", "old"})


@dataclasses.dataclass(frozen=True)
class BarePairs(DirectPreference):
    """Pairs without pre-training rows."""

    def batches(self, work: Work) -> Iterator[Batch]:
        return (Batch(batch.tensors) for batch in super().batches(work))


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize(("aligner", "sizes"), [(Bare(), [1, 1]), (BarePairs(), [0, 2])])
def test_pretraining_rows_are_those_of_the_step(
    start: int, aligner: Aligner, sizes: list[int]
) -> None:
    """What the step draws, and of that the process's share."""
    for rank in (0, 1):
        ready = toy_work(batch_size=6, n_pretraining=2, rank=rank, world=2, start_step=start)
        made = list(_ahead(aligner, ready))
        assert len(made) == 4 - start
        for step, batch in enumerate(made, start):
            expected = ready.pretraining_batch(step, aligner.unit)
            assert_same(batch.pretraining, expected)
            assert len(batch.pretraining or ()) == sizes[rank]


def test_pretraining_rows_that_an_aligner_brings_stay() -> None:
    ready = toy_work(batch_size=6, n_pretraining=2)
    for own, made in zip(GoodImages().batches(ready), _ahead(GoodImages(), ready), strict=True):
        assert_same(own.pretraining, made.pretraining)


def assert_same(one: Batch | None, other: Batch | None) -> None:
    assert one is not None
    assert other is not None
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one[name], other[name]) for name in one.tensors)


@pytest.mark.parametrize(
    ("aligner", "device", "is_ahead"),
    [
        (GoodImages(), "meta", True), (GoodImages(), "cpu", False), (GroupPolicy(), "meta", False),
        (Behind(), "meta", False),
    ],
    ids=str,
)  # fmt: skip
def test_batches_are_made_ahead_beside_another_device_unless_they_hang_on_updates(
    monkeypatch: pytest.MonkeyPatch, aligner: Aligner, device: str, is_ahead: bool
) -> None:
    asked, ready = [], toy_work(n_pretraining=2)
    monkeypatch.setattr(loop_module, "prefetched", lambda *a: asked.append(a) or map(*reversed(a)))
    ready.policy.device = torch.device(device)
    batches = _ahead(aligner, ready)
    assert bool(asked) == is_ahead
    if isinstance(aligner, GoodImages):
        batch = next(batches)
        assert batch.pretraining is not None
        for part in (batch, batch.pretraining):
            assert {t.device.type for t in part.tensors.values()} == {device}


def test_sizes_and_place_come_from_options_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    given = toy_work(micro_batch=99, rank=7)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "process_index", 1)
    processes = make_accelerator("no")
    options = TrainOptions(max_steps=17, batch_size=16, micro_batch_size=4, pretraining_weight=0.1)
    found = placed(given, GoodImages(), options, processes)
    expected = dataclasses.replace(
        given, batch_size=14, n_pretraining=2, max_steps=17, micro_batch=4, rank=1, world=2,
        gather=processes.gather,
    )  # fmt: skip
    assert found == expected
    # of pairs the rest must be whole
    odd = dataclasses.replace(options, pretraining_fraction=3 / 16)
    assert placed(given, DirectPreference(), odd, processes).n_pretraining == 4
    odd = dataclasses.replace(options, micro_batch_size=1)
    with pytest.raises(UserError, match=r"aligner DirectPreference .*; give .* 2 or 4 or 8$"):
        placed(given, DirectPreference(), odd, processes)
    bare = toy_work(data=toy_rows(n_pretraining=0))
    assert placed(bare, GoodImages(), OPTIONS.for_aligner({}), processes).n_pretraining == 0


@pytest.mark.parametrize(
    ("aligner", "changes", "has_reference", "older"),
    [
        (GoodImages(), {}, False, set()),
        (GoodImages(), {"kl_weight": 0.1}, True, set()),
        (GoodImages(), {"norm_guard": 0.1}, True, set()),
        (DirectPreference(), {}, True, set()),
        (Behind(), {}, False, {"old"}),
    ],
)
def test_older_selves_are_kept_for_those_that_ask(
    tmp_path: Path, aligner: Aligner, changes: dict[str, float], has_reference: bool, older: set
) -> None:
    options = dataclasses.replace(OPTIONS, **changes).for_aligner(aligner.defaults)
    for precision, kind in (("no", None), ("bf16", torch.bfloat16)):
        accelerator = make_accelerator(precision)
        ready = placed(toy_work(), aligner, options, accelerator)
        loop = _Loop(ready, aligner, options, run_at(tmp_path / precision), accelerator)
        assert loop.policy.remembered.keys() == older
        kept = loop.policy._reference
        assert bool(kept) == has_reference
        if kept is not None:
            assert kept[1] == kind
        parts = loop.contents().parts()
        assert parts.keys() == {"weights", "optimizer", "average", *(f"older-{n}" for n in older)}
        assert parts["average"].keys() == parts["weights"].keys() == loop.named.keys()


def test_autocasts_format_is_the_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}.items():
        monkeypatch.setattr(Accelerator, "mixed_precision", name)
        assert _autocast_format(make_accelerator("no")) is kind


def test_an_average_of_its_own_begins_at_the_weights(tmp_path: Path) -> None:
    loop = loop_at(tmp_path / "r")
    assert differences(loop.average, [p.detach() for p in loop.parameters]) == 0
    assert not {m.data_ptr() for m in loop.average} & {p.data_ptr() for p in loop.parameters}
    assert not any(mean.requires_grad for mean in loop.average)


class Willing(nn.Sequential):
    """A network that can compute its parts twice."""

    asked = False

    def enable_gradient_checkpointing(self) -> None:
        self.asked = True


@pytest.mark.parametrize("wanted", [True, False])
def test_the_network_is_asked_for_gradient_checkpointing(tmp_path: Path, wanted: bool) -> None:
    ready, accelerator = toy_work(), make_accelerator("no")
    assert isinstance(ready.policy.network, nn.Sequential)
    network = ready.policy.network = Willing(*ready.policy.network)
    options = dataclasses.replace(OPTIONS, gradient_checkpointing=wanted)
    _Loop(ready, GoodImages(), options, run_at(tmp_path / "r"), accelerator)
    assert network.asked is wanted


class Made(Exception):
    """The average is there, and the optimiser would be next."""


def test_the_average_is_kept_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, which has no numbers that could be copied to the CPU."""

    def stop(*_: object) -> None:
        raise Made

    ready, accelerator = toy_work(), make_accelerator("no")
    ready.policy.network.to("meta")
    monkeypatch.setattr(loop_module, "spread", lambda *_, **__: None)
    monkeypatch.setattr(loop_module, "make_optimizer", stop)
    loop = object.__new__(_Loop)
    with pytest.raises(Made):
        loop.__init__(ready, GoodImages(), OPTIONS, run_at(tmp_path / "r"), accelerator)
    assert {mean.device.type for mean in loop.average} == {"meta"}
    options = dataclasses.replace(OPTIONS, ema_on_cpu=True)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta"):
        _Loop(ready, GoodImages(), options, run_at(tmp_path / "r"), accelerator)


def test_shards_need_as_many_rows_of_each_kind_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 rows, whole pairs leave 2 or 4 pre-training rows; two processes need 4."""

    class Spread(Exception):
        """The shares are as they should be, and the network would be cut."""

    def stop(*_: object, sharded: bool, **__: object) -> None:
        assert sharded
        raise Spread

    monkeypatch.setattr(loop_module, "is_sharded", lambda *_, **__: True)
    monkeypatch.setattr(loop_module, "spread", stop)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    aligner, accelerator = DirectPreference(), make_accelerator("no")

    def begin(fraction: float) -> None:
        options = dataclasses.replace(
            OPTIONS, pretraining_weight=0.1, pretraining_fraction=fraction
        ).for_aligner(aligner.defaults)
        ready = placed(toy_work(), aligner, options, accelerator)
        _Loop(ready, aligner, options, run_at(tmp_path / str(fraction)), accelerator)

    with pytest.raises(UserError, match=r"each of 2 processes .* 8 has 2; .* a multiple of 4, or"):
        begin(0.125)
    with pytest.raises(Spread):
        begin(0.5)


def test_the_average_follows_where_it_is(tmp_path: Path) -> None:
    loop = loop_at(tmp_path / "r")
    loop.average = [mean.to("meta") for mean in loop.average]
    loop._average()
    assert {mean.device.type for mean in loop.average} == {"meta"}


def test_checkpoints_come_at_the_ends_of_rollouts_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for every 2 steps; a rollout lasts 3, and at the end of 12 there is no need."""
    loop, saved = loop_at(tmp_path / "r", max_steps=12), []
    assert loop.period == 1
    monkeypatch.setattr(loop, "save_checkpoint", lambda: saved.append(loop.step))
    loop.period = 3
    for loop.step in range(1, 13):
        loop.save_in_time()
    assert saved == [3, 6, 9]
    loop.step, loop.period, loop.options = 10, 1, dataclasses.replace(OPTIONS, max_steps=99)
    loop.save_in_time()
    assert saved == [3, 6, 9], "one step after the last"
    loop.step = 11
    loop.save_in_time()
    assert saved == [3, 6, 9, 11]


def test_steps_between_rollouts_are_those_of_the_aligners_rows(tmp_path: Path) -> None:
    """Of 8 rows one is a pre-training row; 7 × 4 rows of a rollout are four updates."""
    aligner = GroupPolicy(images=14, group_size=2, steps_per_image=2)
    options = dataclasses.replace(OPTIONS, pretraining_weight=0.1).for_aligner(aligner.defaults)
    accelerator = make_accelerator("no")
    ready = placed(toy_work(), aligner, options, accelerator)
    assert _Loop(ready, aligner, options, run_at(tmp_path / "r"), accelerator).period == 4


@pytest.mark.parametrize(
    ("fraction", "world", "expected"),
    [
        (0.5, 1, [[(4, 0), (4, 0), (0, 4), (0, 4)]]),
        (0.375, 1, [[(4, 0), (4, 0), (2, 2), (0, 4)]]),
        (0.375, 2, [[(4, 0), (2, 2)], [(4, 0), (0, 4)]]),
        (0.0, 2, [[(4, 0), (4, 0)]] * 2),
    ],
)
def test_micro_batches_of_pairs_and_pretraining_rows(
    tmp_path: Path, fraction: float, world: int, expected: list[list[tuple[int, int]]]
) -> None:
    aligner, accelerator = DirectPreference(), make_accelerator("no")
    options = dataclasses.replace(
        OPTIONS, batch_size=16, micro_batch_size=4, pretraining_weight=0.1,
        pretraining_fraction=fraction,
    ).for_aligner(aligner.defaults)  # fmt: skip
    ready = placed(toy_work(), aligner, options, accelerator)
    loop = _Loop(ready, aligner, options, run_at(tmp_path / "r"), accelerator)
    for rank, sizes in enumerate(expected):
        loop.work = dataclasses.replace(ready, rank=rank, world=world)
        batch = next(iter(aligner.batches(loop.work)))
        parts = [part for part, _ in loop._parts(batch)]
        assert [(len(p.own), len(p.pretraining or ())) for p in parts] == sizes
        assert torch.equal(torch.cat([p.own["noise"] for p in parts]), batch["noise"])
        natural = [p.pretraining["noise"] for p in parts if p.pretraining]
        assert bool(natural) == bool(batch.pretraining)
        if batch.pretraining:
            assert torch.equal(torch.cat(natural), batch.pretraining["noise"])


# sample grids

Watched = tuple[SampleGrids, list[tuple[Any, ...]]]
"""Grids, and what they were asked for."""


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Every second step; what is asked of them, and when, in place of pictures."""
    drawn = list[tuple[Any, ...]]()
    monkeypatch.setattr(
        SampleGrids,
        "draw",
        lambda _, *given, **named: drawn.append((*given, named, time.perf_counter())),
    )
    made = object.__new__(SampleGrids)
    object.__setattr__(made, "every", 2)
    return made, drawn


def test_a_grid_is_drawn_of_the_policy_as_it_is_spread(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    grids: Watched,
) -> None:
    """What was logged goes before it to the trackers, and its seconds are not the training's."""
    (made, drawn), read = grids, list[int]()
    for compiled in (False, True):
        loop = loop_at(tmp_path / str(compiled))
        loop.options = dataclasses.replace(OPTIONS, compile=compiled)
        monkeypatch.setattr(loop.log, "read", lambda: read.append(len(drawn)))
        for sharded in (False, True):
            if sharded:
                loop.spread = object.__new__(Sharded)
            drawn.clear()
            read.clear()
            for loop.step in range(5):
                loop.sample(made)
                loop.sample(None)
                assert not drawn or loop.log.since >= drawn[-1][-1]
            assert read == [0, 1, 2]
            own = loop.policy, loop.accelerator, loop.run, loop.trackers
            named = {"sharded": sharded, "compiled": compiled}
            assert [asked[:-1] for asked in drawn] == [(k, *own, named) for k in (0, 2, 4)]


@pytest.mark.parametrize(("done", "expected"), [(0, [0, 2, 4]), (2, [4])])
def test_a_resumed_run_draws_no_grid_twice(
    tmp_path: Path, grids: Watched, done: int, expected: list[int]
) -> None:
    path, (made, drawn) = tmp_path / "r", grids
    if done:
        half(path, done)
    train(work(), ALIGNER, OPTIONS, run_at(path), make_accelerator("no"), made)
    assert [asked[0] for asked in drawn] == expected


@pytest.mark.parametrize("done", [0, 2])
def test_progress_begins_where_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    path, shown, plain = tmp_path / "r", list[tuple[Any, Any]](), loop_module.progress
    monkeypatch.setattr(
        loop_module, "progress",
        lambda *given, **named: shown.append((given, named)) or plain(*given, **named),
    )  # fmt: skip
    if done:
        half(path, done)
    train(work(), ALIGNER, OPTIONS, run_at(path), make_accelerator("no"))
    assert shown == [(("aligning", 5, "steps"), {"done": done})]
