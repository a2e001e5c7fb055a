"""What a study's `pretraining` stands for, found and opened."""

from collections.abc import Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path

from sayso.base import files
from sayso.base.errors import UserError, unknown_name
from sayso.base.progress import console
from sayso.base.types import Size, digest
from sayso.base.worlds import find_world, or_world
from sayso.data.pretraining_images._buckets import bucket_sizes
from sayso.data.pretraining_images._captioned import Captioned
from sayso.data.pretraining_images._columns import Columns
from sayso.data.pretraining_images._contract import PretrainingSet
from sayso.data.pretraining_images.filters import parse_filter
from sayso.data.pretraining_images.folder import METADATA, open_folders
from sayso.data.pretraining_images.packs import Pack, Packs
from sayso.data.pretraining_images.tables import Parquet, Saved
from sayso.data.pretraining_images.tars import Tar
from sayso.study.model_files import HUB_ID
from sayso.study.study import Study

ENDINGS = (".tar", ".parquet")
ACCEPTED = (
    "a folder with metadata.jsonl or metadata.csv, a folder saved by datasets, .tar shards or "
    ".parquet files (a folder of them, or a pattern such as 'shards/{000..124}.tar'), or a hub "
    "id such as owner/name"
)


def source_name(given: str) -> str:
    """Pre-training images as study.json has them: a world, a whole path or pattern, or a hub id.

    Raises: UserError: if it is none of these, no file has such a name, or a folder has no images.
    """
    path = Path(given).expanduser()
    if not given or find_world(given):
        return given
    if path.is_dir():
        if not any(next(path.glob(f"{sub}{m}"), None) for m in METADATA for sub in ("", "*/")):
            _refuse_without_packs(path)
        return str(path.resolve())
    if given.endswith(ENDINGS):
        _matching(str(path.absolute()))
        return str(path.absolute())
    if HUB_ID.fullmatch(given):
        return given
    raise UserError(
        f"pre-training images {given!r}: there is no such folder; give {ACCEPTED}, {or_world()}"
    )


def open_pretraining(
    study: Study, size: Size | None = None, bucket_step: int = 0
) -> PretrainingSet:
    """The study's pre-training images: a world's, a folder's, or those of shards or a dataset.

    Args:
        size: what they are brought to; None = the size of the study's images.
        bucket_step: of the sizes beside it for images of other shapes, in pixels; 0 = none. The
            scenes of a world are of one shape.
    Raises: UserError: if the study has none, or what it names is missing, empty or lacks a column.
        A missing or damaged image raises when it is read.
    """
    source, size = study.info.pretraining, size or study.info.sampler.image_size
    if world := find_world(source):
        return world.pretraining_images(study.info.seed, size)
    if not source:
        raise UserError(
            f"{study.path} has no pre-training images; make the study with --pretraining FOLDER, "
            "or turn off what needs them"
        )
    texts = [p.text for p in study.prompts("fidelity")] if study.has_prompts else []
    sizes = bucket_sizes(size, bucket_step) if bucket_step else (size,)
    found = _opened(study, source, sizes)
    # one begins with the other, so both may have the captions: the study's own rule comes first
    for images in found:
        if images.heldout_captions(len(texts)) == texts:
            return images
    console.print(
        f"{found[-1].where} has changed since the study's fidelity prompts were made: they are "
        "measured against the images held out now"
    )
    return found[-1]


def _opened(study: Study, source: str, sizes: Sequence[Size]) -> Sequence[Captioned]:
    """The images by the study's rule of what is held out, and by the other that it may have had."""
    info, path = study.info, Path(source)
    conditions = parse_filter(info.pretraining_filter)
    columns = Columns(
        info.pretraining_image, info.pretraining_caption, conditions, info.pretraining_filter
    )
    split = info.pretraining_split
    for folder in (path / split, path) if split else (path,):
        if any((folder / name).is_file() for name in METADATA):
            _refuse_split(source, split if folder == path else "")
            return open_folders(folder, sizes, columns, info.held_out)
    packs = _packs(study, source, split, columns)
    return [Packs(packs, sizes, columns, study.cache / "pretraining/index", source)]


def _packs(study: Study, source: str, split: str, columns: Columns) -> Sequence[Pack]:
    path = Path(source)
    if path.is_dir():
        _refuse_without_packs(path)
    if (path / "state.json").is_file():
        _refuse_split(source, split)
        return [Saved(path, columns)]
    if (path / "dataset_dict.json").is_file():
        splits = {name: [name] for name in files.read_json(path / "dataset_dict.json")["splits"]}
        return [Saved(path / name, columns) for name in _of_split(source, splits, split)]
    if source.endswith(ENDINGS) and not path.is_dir():
        _refuse_split(source, split)
        addresses = _matching(source)
    else:
        addresses = _of_split(source, _files_of(study, source), split)
    odd = [address for address in addresses if not address.endswith(ENDINGS)]
    if odd or not addresses:
        raise UserError(
            f"pre-training images {source!r} are in files such as {(odd or ['none'])[0]}, which "
            f"cannot be read; give {ACCEPTED}"
        )
    return [
        Tar(Path(address)) if address.endswith(".tar") else Parquet(address, columns)
        for address in addresses
    ]


def _refuse_without_packs(folder: Path) -> None:
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if not saved and not any(next(folder.rglob(f"*{ending}"), None) for ending in ENDINGS):
        raise UserError(
            f"{folder / METADATA[0]} is missing; write a line {{file_name, text}} for each image, "
            f"or give {ACCEPTED}"
        )


def _matching(pattern: str) -> list[str]:
    """The files of a pattern, its braces first, then in the order of their names.

    Raises: UserError: naming the first that is not there.
    """
    patterns = [pattern]
    if "{" in pattern:
        from webdataset.shardlists import expand_urls

        patterns = expand_urls(pattern)
    found = []
    for one in patterns:
        there = sorted(glob(one))  # noqa: PTH207 - Path takes no whole pattern
        if not there:
            what = "no file matches" if has_magic(one) else "there is no file"
            raise UserError(f"pre-training images: {what} {one}; restore it or fix the pattern")
        found += there
    return found


def _files_of(study: Study, source: str) -> Mapping[str, Sequence[str]]:
    """Split → its files, of a folder or a hub id.

    Those of a hub id are addresses that hold its revision. They are kept in the study's cache, so
    that it stays with that revision and needs no network later.
    """
    kept = study.cache / f"pretraining/index/hub-{digest(source)}.json"
    if Path(source).is_dir():
        return _looked_up(source)
    if not kept.is_file():
        files.write_json(kept, _looked_up(source))
    return files.read_json(kept)


def _looked_up(source: str) -> dict[str, list[str]]:
    import datasets

    try:
        found = datasets.load_dataset_builder(source).config.data_files or {}
    except (OSError, ValueError, RuntimeError) as error:
        there = Path(source).is_dir()
        what = "holds no images that are known" if there else "cannot be found on the hub"
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"pre-training images {source!r}: it {what} ({reason}); give {ACCEPTED}"
        ) from None
    return {str(split): [str(file) for file in those] for split, those in found.items()}


def _of_split(source: str, splits: Mapping[str, Sequence[str]], split: str) -> Sequence[str]:
    """The files of the split that is asked for, of "train", or of the only one."""
    if split and split not in splits:
        raise unknown_name(f"split of {source}", split, splits)
    if not split and "train" not in splits and len(splits) != 1:
        raise UserError(
            f"{source} has the splits {', '.join(splits)}; make the study with --pretraining-split"
        )
    return splits[split or ("train" if "train" in splits else next(iter(splits)))]


def _refuse_split(source: str, split: str) -> None:
    if split:
        raise UserError(f"{source} has no splits; make the study without --pretraining-split")
