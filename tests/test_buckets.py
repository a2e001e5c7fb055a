"""Aspect-ratio buckets: each image in the nearest shape, each as often as any other."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import killed_at
from PIL import Image, ImageOps
from safetensors.torch import load_file
from studies import rated_study
from test_processes import TWO, launched
from torch import Tensor

from sayso.aligners import Work
from sayso.aligners.sft import GoodImages
from sayso.base.errors import UserError
from sayso.base.types import Sampler, Size
from sayso.data import pretraining_latents
from sayso.data.pretraining_images import bucket_sizes, is_held_out, open_pretraining
from sayso.data.pretraining_images._buckets import nearest
from sayso.data.pretraining_latents import encoded_pretraining
from sayso.data.rows import make_rows
from sayso.families import Policy
from sayso.families._loading import load_policy
from sayso.families.sdxl import StableDiffusionXL
from sayso.stages.align import AlignConfig, align, plan
from sayso.study.run import Run
from sayso.study.study import Study
from sayso.testing import ToyPolicy, toy_work
from sayso.testing.toy import toy_rows

CPU = torch.device("cpu")
SQUARE, WIDE, TALL = Size(32, 32), Size(40, 24), Size(24, 40)
SHAPES = [(64, 64), (100, 50), (50, 100), (60, 60), (96, 60), (30, 33), (80, 41), (20, 90)]
NEAREST = [SQUARE, WIDE, TALL, SQUARE, WIDE, SQUARE, WIDE, TALL]
CONFIG = AlignConfig(
    aligner="sft", max_steps=6, batch_size=8, checkpoint_every=2, mixed_precision="no",
    pretraining_weight=0.5, pretraining_fraction=0.5, bucket_step=8,
)  # fmt: skip


def photographs(folder: Path) -> Path:
    """A folder with a picture of each shape for training, and some that are held out."""
    folder.mkdir(parents=True)
    lines, shapes = list[str](), iter(SHAPES)
    for i in range(60):
        name = f"{i}.png"
        shape = (32, 32) if is_held_out(name) else next(shapes, None)
        if shape is None:
            continue
        generator = torch.Generator().manual_seed(i)
        pixels = torch.randint(0, 255, (3, 3, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).resize(shape).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"{shape[0]} by {shape[1]}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Samples of 32 × 32 and pictures of eight shapes."""
    folder = tmp_path_factory.mktemp("buckets")
    made = rated_study(folder)
    info = dataclasses.replace(made.info, pretraining=str(photographs(folder / "photographs")))
    _written(made, info)
    return Study.open(made.path)


def _written(study: Study, info: Any) -> None:
    path = study.path / "study.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"pretraining": info.pretraining, "held_out": "by name"}))


def shapes_of(texts: list[str]) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, _, b in (text.split() for text in texts)]


# the sizes


def test_the_sizes_of_sdxl() -> None:
    lying = [Size(1344, 768), Size(1216, 832), Size(1152, 896), Size(1088, 960)]
    expected = {Size(1024, 1024), *lying, *(Size(h, w) for w, h in lying)}
    found = bucket_sizes(Size(1024, 1024), 64)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert found[0] == Size(1024, 1024)


@pytest.mark.parametrize(("size", "step"), [(Size(512, 512), 64), (Size(1024, 768), 64),
                                            (Size(96, 64), 8), (Size(32, 32), 32)])  # fmt: skip
def test_sizes_keep_the_pixels_and_the_step(size: Size, step: int) -> None:
    found = bucket_sizes(size, step)
    assert found[0] == size
    assert len(set(found)) == len(found)
    for width, height in found[1:]:
        assert width % step == height % step == 0
        assert size.pixels - step * max(width, height) < width * height <= size.pixels
        assert max(width, height) <= 2 * min(width, height)


def test_the_nearest_shape() -> None:
    sizes = (SQUARE, WIDE, TALL)
    assert [nearest(Size(*shape), sizes) for shape in SHAPES] == NEAREST
    # between 1 and 5/3 the border is their geometric mean, 1.291
    assert nearest(Size(1290, 1000), sizes) == SQUARE
    assert nearest(Size(1292, 1000), sizes) == WIDE
    assert nearest(Size(1000, 1292), sizes) == TALL


# the latents


def test_each_image_is_cropped_to_the_nearest_size_and_encoded_once(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining_latents, "IMAGES_A_SHARD", 3)
    policy = load_policy(study, "base", CPU)
    latents, captions = encoded_pretraining(study, policy, 8, None, SQUARE, bucket_step=8)
    folder = Path(study.info.pretraining)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    shapes = shapes_of(captions)
    assert sorted(shapes) == sorted(SHAPES)
    for i, shape in enumerate(shapes):
        names = [r["file_name"] for r in rows if shapes_of([r["text"]]) == [shape]]
        wanted = NEAREST[SHAPES.index(shape)]
        assert latents.sizes[int(latents.bucket[i])] == wanted
        fitting = []
        for name in names:
            fit = ImageOps.fit(Image.open(folder / name), wanted, Image.Resampling.LANCZOS)
            pixels = torch.tensor(list(fit.tobytes())).view(1, wanted.height, wanted.width, 3)
            encoded = policy.encode_images(pixels.permute(0, 3, 1, 2).float() / 255)
            fitting.append((encoded - latents[torch.tensor([i])].float()).abs().max() < 2e-3)
        assert any(fitting), shape
    # several at once, in their order, of several files
    for number in range(3):
        alike = (latents.bucket == number).nonzero()[:, 0].flip(0)
        together = latents[alike]
        assert torch.equal(together, torch.cat([latents[i[None]] for i in alike]))
    monkeypatch.setattr(type(policy), "encode_images", None)
    again, _ = encoded_pretraining(study, policy, 8, None, SQUARE, bucket_step=8)
    assert torch.equal(again.bucket, latents.bucket)


def test_the_cache_tells_buckets_apart(study: Study) -> None:
    sets = [
        open_pretraining(study, SQUARE), open_pretraining(study, SQUARE, 8),
        open_pretraining(study, SQUARE, 4), open_pretraining(study, WIDE, 8),
    ]  # fmt: skip
    assert len({images.images_identity(0, 4) for images in sets}) == 4
    # one bucket is as none
    alone = open_pretraining(study, SQUARE, 32)
    assert alone.images_identity(0, 4) == sets[0].images_identity(0, 4)


def test_damaged_images_are_left_out_of_their_buckets(tmp_path: Path, study: Study) -> None:
    folder = photographs(tmp_path / "p")
    _written(study, dataclasses.replace(study.info, pretraining=str(folder)))
    broken = Study.open(study.path)
    try:
        policy = load_policy(broken, "base", CPU)
        name = next(open_pretraining(broken).train_pictures([(2, 3)]))
        captions = open_pretraining(broken).train_captions(8)
        images: Any = open_pretraining(broken)
        (folder / images.rows("train", 8)[2].name).write_bytes(b"no picture")
        latents, left = encoded_pretraining(
            broken, policy, 8, None, SQUARE, bucket_step=8, leave_out_damaged=True
        )
    finally:
        _written(study, study.info)
    assert name
    assert left == captions[:2] + captions[3:]
    wanted = [NEAREST[SHAPES.index(shape)] for shape in shapes_of(left)]
    assert [latents.sizes[i] for i in latents.bucket.tolist()] == wanted


# the batches


def bucketed(counts: list[int], **changes: Any) -> Work:
    """A toy's work whose pre-training images lie in buckets of so many images."""
    rows = toy_rows(n_pretraining=sum(counts))
    bucket = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    mixed = bucket[torch.randperm(len(bucket), generator=torch.Generator().manual_seed(1))]
    data = dataclasses.replace(rows, bucket=mixed, sizes=(SQUARE, WIDE, TALL)[: len(counts)])
    return toy_work(ToyPolicy(8), data=data, batch_size=6, n_pretraining=2, **changes)


def drawn_rows(work: Work, step: int) -> Tensor:
    """The pre-training rows of a step, told by their latents."""
    batch = work.pretraining_batch(step)
    assert batch is not None
    stored = work.data.latents[work.data.pretraining].flatten(1)
    found = (batch["latents"].flatten(1)[:, None] == stored[None]).all(-1)
    return found.int().argmax(1)


def test_every_image_has_the_same_chance() -> None:
    counts, steps = [9, 2, 1], 1500
    work = bucketed(counts)
    seen = torch.zeros(sum(counts))
    assert work.data.bucket is not None
    for step in range(steps):
        rows = drawn_rows(work, step)
        assert len(set(work.data.bucket[rows].tolist())) == 1
        seen += torch.bincount(rows, minlength=len(seen))
    expected = steps * 2 / len(seen)
    # an image alone in its bucket comes twice or not at all: standard deviation 2 √(steps / 12)
    assert (seen - expected).abs().max() < 4 * 2 * (steps / 12) ** 0.5


@pytest.mark.parametrize("denoising", [False, True])
@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_have_the_rows_of_one(denoising: bool, world: int) -> None:
    def batch(work: Work, step: int) -> Any:
        if not denoising:
            return work.pretraining_batch(step)
        return work.denoising_batch(torch.arange(6), work.generator(step)).pretraining

    whole = bucketed([5, 4, 3])
    for step in range(6):
        parts = [
            batch(dataclasses.replace(whole, rank=rank, world=world), step)
            for rank in range(world)
        ]  # fmt: skip
        one = batch(whole, step)
        for name, tensor in one.tensors.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), tensor), name


def test_without_buckets_batches_are_as_they_were() -> None:
    plain = toy_work(ToyPolicy(8), batch_size=6, n_pretraining=2)
    one = dataclasses.replace(plain, data=dataclasses.replace(plain.data, sizes=(SQUARE,)))
    for step in range(3):
        first, second = (
            work.denoising_batch(torch.arange(6), work.generator(step)) for work in (plain, one)
        )
        for name in first.tensors:
            assert torch.equal(first[name], second[name])


def test_times_and_sizes_follow_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flow models shift times by the size; all families ask the sampler for it."""
    asked = list[Size]()
    plain = ToyPolicy.draw_t

    def draw_t(policy: Policy, b: int, generator: Any, sampler: Sampler | None = None) -> Tensor:
        assert sampler
        asked.append(sampler.image_size)
        return plain(policy, b, generator, sampler)

    monkeypatch.setattr(ToyPolicy, "draw_t", draw_t)
    work = bucketed([4, 4, 4], sampler=Sampler(image_size=SQUARE))
    for step in range(20):
        work.denoising_batch(torch.arange(6), work.generator(step))
    assert asked[::2] == [SQUARE] * 20
    assert set(asked[1::2]) == {SQUARE, WIDE, TALL}


def test_sdxl_is_told_the_size_of_the_bucket(tmp_path: Path) -> None:
    policy = StableDiffusionXL.load(StableDiffusionXL.tiny(tmp_path), CPU)
    noisy = torch.zeros(2, *policy.latent_shape(WIDE))
    told = policy.added(noisy, policy.encode_prompts(["a", "b"]))["added_cond_kwargs"]["time_ids"]
    assert told.tolist() == [[24, 40, 0, 0, 24, 40]] * 2


# the training


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(next(run.weights.rglob("*.safetensors")))


def largest_difference(a: Run, b: Run) -> float:
    pairs = zip(weights(a).values(), weights(b).values(), strict=True)
    return max((x - y).abs().max().item() for x, y in pairs)


@pytest.fixture(scope="module")
def one(study: Study) -> Run:
    return align(study, CONFIG, GoodImages())


def test_images_of_several_shapes_are_learned(study: Study, one: Run) -> None:
    assert all(row["pretraining_error"] > 0 for row in one.history())
    plain = align(study, dataclasses.replace(CONFIG, name="plain", bucket_step=0), GoodImages())
    assert largest_difference(one, plain) > 0
    with pytest.raises(UserError, match="bucket_step 8 → 0"):
        align(study, dataclasses.replace(CONFIG, bucket_step=0), GoodImages())


def test_portions_change_nothing(study: Study, one: Run) -> None:
    """Of two rows each, some of which are of both kinds."""
    config = dataclasses.replace(CONFIG, name="portions", micro_batch_size=2, batch_size=8)
    assert largest_difference(align(study, config, GoodImages()), one) < 1e-5


def test_a_killed_run_ends_in_the_same_bits(
    study: Study, one: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, name="killed")
    with killed_at(monkeypatch, 3):
        align(study, config, GoodImages())
    assert largest_difference(align(study, config, GoodImages()), one) == 0


LAUNCH = """
import dataclasses, sys
from pathlib import Path

sys.path.insert(0, {tests!r})
from sayso.aligners.sft import GoodImages
from sayso.stages.align import align
from sayso.study.study import Study
from test_buckets import CONFIG

study = Study.open(Path({study!r}))
for sharding in ("none", "full"):
    align(study, dataclasses.replace(CONFIG, name=sharding, sharding=sharding), GoodImages())
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(study: Study, one: Run, tmp_path: Path) -> None:
    code = LAUNCH.format(tests=str(Path(__file__).parent), study=str(study.path))
    done = launched(code, tmp_path, *TWO)
    assert done.returncode == 0, done.stderr
    for sharding in ("none", "full"):
        assert largest_difference(study.find_run(f"align-{sharding}"), one) < 1e-5, sharding


# what is refused


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (12, "bucket_step 12 does not divide the image size 32x32; give one that divides both"),
        (1, "bucket_step 1 is not possible: image_size"),
        (-1, "bucket_step -1 is too small; give 0 or more"),
    ],
)
def test_steps_that_do_not_fit(study: Study, step: int, says: str) -> None:
    config = dataclasses.replace(CONFIG, name="refused", bucket_step=step)
    with pytest.raises(UserError, match=says):
        align(study, config, GoodImages())
    assert not (study.path / "runs/align-refused").exists()
    if step == 12:
        with pytest.raises(UserError, match=says):
            plan(study, config)


def test_a_world_draws_one_shape(study: Study) -> None:
    _written(study, dataclasses.replace(study.info, pretraining="tinyworld"))
    try:
        world = Study.open(study.path)
        policy = load_policy(world, "base", CPU)
        latents, captions = encoded_pretraining(world, policy, 3, None, SQUARE, bucket_step=8)
    finally:
        _written(study, study.info)
    assert latents.bucket.tolist() == [0, 0, 0]
    rows = make_rows(policy, (latents[torch.tensor([0])], ["a"]), [1.0], [1.0], (latents, captions))
    assert rows.bucket is not None
