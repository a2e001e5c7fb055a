"""The same captioned pictures, kept in every way that is read."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from studies import random_study

from sayso.study.study import Study

N = 40
"""Pictures; number i has the colour (i, 0, 0), the caption "picture i" and aesthetic i / 4."""
DAMAGED = b"\xff\xd8 no picture"


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 24), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def pictures(damaged: Sequence[int] = ()) -> list[bytes]:
    return [DAMAGED if i in damaged else png(i) for i in range(N)]


def row(number: int) -> dict[str, object]:
    return {"text": f"picture {number}", "aesthetic": number / 4}


def write_jsonl(folder: Path, damaged: Sequence[int] = ()) -> str:
    folder.mkdir(parents=True)
    lines = [json.dumps({"file_name": f"{i:02}.png", **row(i)}) for i in range(N)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    for i, content in enumerate(pictures(damaged)):
        (folder / f"{i:02}.png").write_bytes(content)
    return str(folder)


def write_csv(folder: Path, damaged: Sequence[int] = ()) -> str:
    write_jsonl(folder, damaged)
    (folder / "metadata.jsonl").unlink()
    lines = [f'{i:02}.png,"picture {i}",{i / 4}' for i in range(N)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text,aesthetic", *lines]))
    return str(folder)


def write_tars(folder: Path, damaged: Sequence[int] = ()) -> str:
    """Four shards; captions are members, what else is known of a picture a JSON object."""
    folder.mkdir(parents=True)
    contents = pictures(damaged)
    for shard in range(4):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as tar:
            for i in range(shard * N // 4, (shard + 1) * N // 4):
                about = json.dumps({"aesthetic": i / 4}).encode()
                for ending, content in (
                    ("png", contents[i]), ("txt", f"picture {i}".encode()), ("json", about)
                ):  # fmt: skip
                    member = tarfile.TarInfo(f"{i:05}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(folder / "{000..003}.tar")


def table(damaged: Sequence[int] = ()) -> pa.Table:
    images = [{"bytes": c, "path": f"{i}.png"} for i, c in enumerate(pictures(damaged))]
    columns = {name: [row(i)[name] for i in range(N)] for name in row(0)}
    return pa.table({"image": images, **columns})


def write_parquet(folder: Path, damaged: Sequence[int] = ()) -> str:
    """Two files of a split, each with groups of 6 rows, and another split."""
    (folder / "data").mkdir(parents=True)
    whole = table(damaged)
    for part in range(2):
        rows = whole.slice(part * N // 2, N // 2)
        name = folder / f"data/train-{part:05}-of-00002.parquet"
        pq.write_table(rows, name, row_group_size=6)
    pq.write_table(whole.slice(0, 3), folder / "data/test-00000-of-00001.parquet")
    return str(folder)


def write_saved(folder: Path, damaged: Sequence[int] = ()) -> str:
    rows = table(damaged).to_pydict()
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": data, "test": data.select(range(3))}).save_to_disk(folder)
    return str(folder)


KINDS: dict[str, Callable[..., str]] = {
    "jsonl": write_jsonl, "csv": write_csv, "tars": write_tars, "parquet": write_parquet,
    "saved": write_saved,
}  # fmt: skip


def natural_study(folder: Path, source: str, **options: str) -> Study:
    """A study on a random tiny model with these pre-training images."""
    study = random_study(folder)
    named = {f"pretraining_{name}": value for name, value in options.items()}
    study.info = replace(study.info, pretraining=source, held_out="by name", **named)
    return study
