"""CLIP as a feature extractor, and embeddings kept in the study."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sayso.base import files
from sayso.base.devices import (
    agreed,
    in_shares,
    is_main_process,
    number_of_processes,
    wait_for_everyone,
)
from sayso.base.errors import UserError
from sayso.base.finite import refuse_not_finite
from sayso.base.hashes import folder_digest
from sayso.base.pictures import to_rgb
from sayso.base.progress import progress
from sayso.base.types import Sample, digest
from sayso.base.weights import load_part, load_tokenizer
from sayso.base.worlds import find_world, or_world
from sayso.data.clip_preprocessing import Preprocessing, read_preprocessing
from sayso.data.reading import Read, how_read
from sayso.study.study import Study

if TYPE_CHECKING:
    from PIL import Image

CHUNK = 128
"""Images in a shard of the cache. Fixed, because the last bits of an embedding can depend on how
many rows are computed together."""

PICTURES_AT_ONCE = 32
"""Pictures that go through CLIP at a time: with ViT-L at 336 pixels and in fp32 they need less than
a GiB (a picture has 577 tokens, whose widest layer has 4,096 numbers)."""

STACKED_PIXELS = 64 * 512 * 512
"""Pixels of pictures held as floats at a time, 12 bytes each: 200 MB."""

KEPT_TEXTS = 32_768
"""Texts whose embeddings are kept in memory: 128 MiB of ViT-H's."""

TEXT_ROWS = 32
"""Texts embedded at a time, for the same reason as `CHUNK`."""


def to_pixels(image: "Image.Image") -> Float[Tensor, "3 h w"]:
    """A picture as float RGB in [0, 1]."""
    array = np.asarray(to_rgb(image), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)


def to_picture(pixels: Float[Tensor, "3 h w"]) -> "Image.Image":
    """RGB in [0, 1], which is clipped, as a picture of 8 bits a channel.

    Raises: UserError: if a number is not finite.
    """
    from PIL import Image

    if not pixels.isfinite().all():
        raise UserError(
            "an image has pixels that are NaN or infinite, so that it cannot be scored as a file; "
            "the model that generated it diverged, or the number format is too coarse for it"
        )
    array = (pixels.detach().float().clamp(0, 1) * 255).round().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array.astype(np.uint8))


def stacked(
    pictures: "Iterable[Image.Image]", most: int = 64
) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """Pictures in order, as RGB in [0, 1], in portions of one size that fit the memory.

    Args:
        pictures: of any sizes; neighbours of one size go together.
        most: how many at a time at most, ≥ 1; fewer where they are large.
    """
    for (width, height), same in groupby(pictures, key=lambda picture: picture.size):
        size = max(1, min(most, STACKED_PIXELS // (width * height)))
        while part := list(islice(same, size)):
            yield torch.stack([to_pixels(picture) for picture in part])


class ClipEncoder:
    """A frozen transformers `CLIPModel` with its tokenizer and preprocessing; see `load`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        preprocessing: Callable[[Tensor], Tensor],
        content_hash: str,
        *,
        cuts_texts: bool = False,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.hash = content_hash
        self.cuts_texts = cuts_texts
        self._texts: dict[str, Tensor] = {}

    @classmethod
    def load(cls, name_or_path: str, device: torch.device | str = "cpu") -> "ClipEncoder":
        """Load a world's, a folder in transformers' layout, or a hub id; float32.

        Raises: UserError: if there is no such folder or hub id, the weights are not safetensors or
            not those of a CLIPModel, or the preprocessor file is missing.
        """
        folder = resolve_clip(name_or_path)
        preprocessing = read_preprocessing(folder)
        model, tokenizer = _load_model(folder)
        _refuse_other_size(folder, preprocessing, model.config.vision_config.image_size)
        return cls(model.to(device), tokenizer, preprocessing, folder_digest(folder))

    @classmethod
    def of_reward(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        preprocessing: Callable[[int], Callable[[Tensor], Tensor]] | None = None,
    ) -> "ClipEncoder":
        """The CLIP of a reward that others trained, called as they call it; float32.

        Texts are cut where the model ends, and pictures are rounded to 8 bits before
        and after they are resized, unless they ask for gradients.

        Args:
            folder: in transformers' layout.
            preprocessing: what makes pixels of pictures, made from the side in pixels that the
                model reads; None = as the folder's file says.
        Raises: UserError: as `load`.
        """
        model, tokenizer = _load_model(folder)
        side = model.config.vision_config.image_size
        if preprocessing is None:
            pixels_of = replace(read_preprocessing(folder), rounds=True)
            _refuse_other_size(folder, pixels_of, side)
        else:
            pixels_of = preprocessing(side)
        # embeddings of the same weights that are not rounded are others
        content = digest([folder_digest(folder), repr(pixels_of)])
        return cls(model.to(device), tokenizer, pixels_of, content, cuts_texts=True)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def width(self) -> int:
        """Numbers in an embedding, d."""
        return self.model.config.projection_dim

    @property
    def max_tokens(self) -> int:
        """The most tokens a text may have, start and end tokens included."""
        limit = self.model.config.text_config.max_position_embeddings
        return min(limit, self.tokenizer.model_max_length)

    def images(
        self, images: "Float[Tensor, 'b 3 h w'] | Iterable[Image.Image]"
    ) -> Float[Tensor, "b d"]:
        """Image embeddings after the projection, not normalised.

        Gradients pass through to a tensor that asks for them.

        Args:
            images: RGB in [0, 1], or pictures of any sizes, one or more; they are read one after
                the other, and only what CLIP sees of them is held.
        """
        if isinstance(images, Tensor):
            pixels = self.preprocessing(images.to(self.device, torch.float32))
        else:
            pixels = torch.cat([self.preprocessing(to_pixels(image)[None]) for image in images])
        parts = [self._embed_pixels(part) for part in pixels.split(PICTURES_AT_ONCE)]
        return torch.cat(parts)

    def _embed_pixels(self, pixels: Tensor) -> Tensor:
        with self._full_precision():
            pooled = self.model.vision_model(pixel_values=pixels.to(self.device)).pooler_output
            return self.model.visual_projection(pooled)

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Text embeddings after the projection, not normalised; the latest are kept.

        Raises: UserError: if the tokenizer would cut a text or does not know a word of it.
        """
        found = {text: self._texts[text] for text in texts if text in self._texts}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            self.check_texts(missing)
            found |= (made := self._embed(missing))
            self._keep(made)
        return torch.stack([found[text] for text in texts])

    def _keep(self, made: Mapping[str, Tensor]) -> None:
        """Keep embeddings of texts; the oldest go where there are too many."""
        self._texts |= made
        for text in list(islice(self._texts, max(0, len(self._texts) - KEPT_TEXTS))):
            del self._texts[text]

    def how_read(self, texts: Sequence[str]) -> list[Read]:
        """How much of each text CLIP reads; of long ones nothing, unless it cuts them."""
        # up to its first end token, which also stands for an unknown symbol
        found = how_read(self.tokenizer, texts, self.max_tokens, self.tokenizer.eos_token_id)
        return found if self.cuts_texts else [Read.NOT if read else read for read in found]

    def check_texts(self, texts: Sequence[str]) -> None:
        """Raise UserError naming the first text that the tokenizer would cut or not understand."""
        for text, read in zip(texts, self.how_read(texts), strict=True):
            if read != Read.NOT:
                continue
            n = len(self.tokenizer(text)["input_ids"])
            if n > self.max_tokens and not self.cuts_texts:
                raise UserError(
                    f"prompt {text!r} has {n} tokens, but CLIP reads at most {self.max_tokens}; "
                    "shorten it"
                )
            raise UserError(
                f"prompt {text!r} has a word that CLIP's tokenizer does not know; rephrase it"
            )

    def _embed(self, texts: list[str]) -> dict[str, Tensor]:
        """Embed in batches of one shape, so that a text's company cannot change its last bits."""
        found: dict[str, Tensor] = {}
        lengths = [len(ids) for ids in self.tokenizer(texts)["input_ids"]]
        by_length = sorted(zip(texts, lengths, strict=True), key=lambda pair: -(-pair[1] // 16))
        for sixteens, group in groupby(by_length, key=lambda pair: -(-pair[1] // 16)):
            same = [text for text, _ in group]
            for start in range(0, len(same), TEXT_ROWS):
                part = same[start : start + TEXT_ROWS]
                vectors = self._embed_rows(part, min(16 * sixteens, self.max_tokens))
                found |= dict(zip(part, vectors, strict=False))
        return found

    @torch.no_grad()
    def _embed_rows(self, texts: list[str], length: int) -> Tensor:
        rows = texts + texts[-1:] * (TEXT_ROWS - len(texts))
        tokens = self.tokenizer(
            rows, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self.device)
        with self._full_precision():
            vectors = self.model.text_projection(self.model.text_model(**tokens).pooler_output)
        refuse_not_finite(vectors, [f"prompt {text!r}" for text in rows], "CLIP's text encoder")
        return vectors

    def _full_precision(self) -> torch.autocast:
        """Kept embeddings must not depend on whose autocast they were first asked for in."""
        return torch.autocast(self.device.type, enabled=False)


def resolve_clip(name_or_path: str) -> Path:
    """The folder of a CLIP: a world's, a path, or a hub id whose files are then fetched.

    Raises: UserError: if it is none of these or has no safetensors weights.
    """
    if world := find_world(name_or_path):
        folder = world.clip_model
    elif Path(name_or_path).expanduser().is_dir():
        folder = Path(name_or_path).expanduser()
    else:
        folder = _download(name_or_path)
    if not any(folder.glob("model*.safetensors")):
        raise UserError(
            f"CLIP folder {folder} has no model.safetensors; only safetensors weights are read: "
            "convert them with save_pretrained(..., safe_serialization=True)"
        )
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"CLIP {name!r} is not a folder and could not be fetched ({reason}); give a folder, a "
            f"hub id {or_world()}"
        ) from None


def _load_model(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, CLIPModel

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json; give a model's folder")
    kind = files.read_json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise UserError(f"{folder} holds a {kind!r} model; give the folder of a CLIPModel")
    return load_part(CLIPModel, folder, ""), load_tokenizer(AutoTokenizer, folder)


def _refuse_other_size(folder: Path, preprocessing: Preprocessing, wanted: int) -> None:
    """Refuse a preprocessing that makes another size than the model reads, where it says one."""
    size, crop = preprocessing.size_px, preprocessing.crop_px
    made = crop or (size if isinstance(size, tuple) else None)
    if made is not None and made != (wanted, wanted):
        raise UserError(
            f"{folder} makes images of {made[0]}×{made[1]} pixels in its preprocessor file, but "
            f"its model reads {wanted}×{wanted}; restore the folder"
        )


def embed_samples(
    study: Study, encoder: ClipEncoder, samples: Sequence[Sample]
) -> Float[Tensor, "n d"]:
    """Image embeddings of samples, on the CPU; each picture is computed once and kept in the study.

    They are kept by what the CLIP's folder and the image's file hold, and not by names.

    Raises: UserError: if an image is missing, or one that is not embedded yet damaged.
    """
    folder = _cache_of(study, encoder)
    known = _read_cache(folder)
    contents = [study.image_hash(sample) for sample in samples]
    missing = {c: s for c, s in zip(contents, samples, strict=True) if c not in known}
    if missing:
        with progress("embedding images", len(missing)) as advance:
            for part in _chunks(missing):
                known |= _keep(folder, part, _embed(study, encoder, part))
                advance(len(part))
    return torch.stack([known[content] for content in contents])


def embed_together(study: Study, encoder: ClipEncoder, samples: Sequence[Sample]) -> None:
    """Embed what is not embedded yet, each process of a launch its share; the main one keeps it.

    All call it alike. Chunks are those of one process, so embeddings are the same to the last bit.

    Raises: UserError: as `embed_samples`.
    """
    folder, missing = _cache_of(study, encoder), dict[str, Sample]()
    if is_main_process():
        known = _read_cache(folder)
        contents = {study.image_hash(sample): sample for sample in samples}
        missing = {content: s for content, s in contents.items() if content not in known}
    chunks = _chunks(agreed(missing))
    together = number_of_processes()
    with progress("embedding images", sum(map(len, chunks))) as advance:
        for at in range(0, len(chunks), together):
            now = chunks[at : at + together]
            made = in_shares(now, lambda own: [_embed(study, encoder, part) for part in own], 1)
            for part, vectors in zip(now, made, strict=True):
                if is_main_process():
                    _keep(folder, part, vectors)
                advance(len(part))
    wait_for_everyone()


def _cache_of(study: Study, encoder: ClipEncoder) -> Path:
    return study.cache / f"images-{encoder.hash}"


def _chunks(missing: Mapping[str, Sample]) -> list[dict[str, Sample]]:
    rows = list(missing.items())
    return [dict(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]


@torch.no_grad()
def _embed(
    study: Study, encoder: ClipEncoder, samples: Mapping[str, Sample]
) -> Float[Tensor, "n d"]:
    """Embeddings of samples by the content of their images' files, on the CPU; all finite."""
    vectors = encoder.images(study.image(s) for s in samples.values()).cpu()
    names = [f"sample {s.id}" for s in samples.values()]
    refuse_not_finite(vectors, names, f"CLIP {study.info.clip_model}")
    return vectors


def _keep(folder: Path, samples: Mapping[str, Sample], vectors: Tensor) -> dict[str, Tensor]:
    shard = {content: v.clone() for content, v in zip(samples, vectors, strict=True)}
    files.write_bytes(folder / f"{digest(list(shard))}.safetensors", save(shard))
    return shard


def _read_cache(folder: Path) -> dict[str, Tensor]:
    """All cached embeddings; a damaged shard counts as absent, for it can be computed again."""
    known: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            shard = load_file(path)
        except SafetensorError:
            shard = {}
        if shard and all(vector.isfinite().all() for vector in shard.values()):
            known |= shard
        else:
            path.unlink()
    return known
