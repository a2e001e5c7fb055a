"""What every family has in common that is a folder in diffusers' layout.

A family names its parts (`network_part`, `encoders`, `tokenizers`) and says what only it knows:
how prompts become conditions, what the network is called with, which schedule and times. Reading
the folder, the autoencoder, limits of tokenizers, adapters and weights are written here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sayso.base.errors import UserError
from sayso.base.files import JsonObject, read_json
from sayso.base.types import Sampler, Size
from sayso.base.weights import load_part, load_tokenizer, put
from sayso.families._contract import PARTS, Policy
from sayso.families._folder import (
    class_name,
    diffusers_class,
    on_meta,
    refuse_few_step_names,
    refuse_strangers,
    transformers_class,
)
from sayso.families._lora import LORA_FILE, REMAKE, load_lora, merge_lora, save_lora
from sayso.families._older_selves import unwrapped
from sayso.families._schedule import noise_of


class DiffusersPolicy(Policy):
    """A folder that a pipeline of diffusers loads, used without the pipeline.

    Args:
        dtype: number format of the weights in memory; None = of each part as it is stored.

    Attributes set by `__init__`: `network`, `vae` and `text` (the text encoders by part, as
    modules), each None where it was not asked for; `configs` (by part, of all); `tokenizers_of`
    (by part); `scheduler`; `dtype`.
    """

    network_part: str
    """The network's subfolder, such as unet or transformer."""
    network_class: str
    """Its class in diffusers."""
    encoders: ClassVar[Mapping[str, tuple[str, ...]]]
    """Subfolder of a text encoder → the classes of transformers that it may be of."""
    tokenizers: ClassVar[Mapping[str, str]]
    """Subfolder of a tokenizer → its class; `tokenizer_2` goes with `text_encoder_2`."""
    optional: tuple[str, ...] = ()
    """Text encoders that a folder may lack; its `model_index.json` says [null, null] then."""
    patch: int = 1
    """Latents that the network takes together, along each side."""

    def __init__(
        self,
        path: Path,
        device: torch.device,
        dtype: torch.dtype | None = torch.float32,
        parts: Sequence[str] = PARTS,
    ) -> None:
        index = read_json(path / "model_index.json")
        self.path, self.device, self._format = path, device, dtype
        self.configs: dict[str, Any] = {}
        refuse_few_step_names(path, index.get("_name_or_path"))
        vae_class = diffusers_class(class_name(index, "vae", path), path)
        self.scheduler = self.read_scheduler(path, class_name(index, "scheduler", path))
        network_class = diffusers_class(self.network_class, path)
        self.network = self._part(network_class, self.network_part, "network" in parts)
        self.dtype = dtype or getattr(self.network, "dtype", torch.float32)
        # loading puts its own path into the config
        config = read_json(path / self.network_part / "config.json")
        refuse_few_step_names(path, config.get("_name_or_path"))
        self.check_network(self.configs[self.network_part], path / self.network_part)
        self.vae = self._part(vae_class, "vae", "vae" in parts)
        text = {part: self._encoder(part, index, "text" in parts) for part in self.encoders}
        found = {part: module for part, module in text.items() if part in self.configs}
        self.text: Any = nn.ModuleDict(found) if "text" in parts else None
        self.tokenizers_of = {
            part: load_tokenizer(transformers_class(kind), path / part)
            for part, kind in self.tokenizers.items()
            if _encoder_of(part) in self.configs
        }
        refuse_strangers(path, self.strangers())
        for frozen in (self.vae, self.text):
            if frozen is not None:
                frozen.requires_grad_(False).eval()
        self.scale, self.mean = _normalisation(self.configs["vae"], device)
        self.pixels_per_latent: int = self.vae_factor()
        self.prepare(index)

    # what a family says

    @classmethod
    def read_scheduler(cls, path: Path, name: str) -> Any:
        """The scheduler of a folder. Raises: UserError: if the family does not draw with it."""
        raise NotImplementedError

    def prepare(self, index: JsonObject) -> None:
        """Set what follows from the parts, once they are there.

        Args:
            index: what model_index.json says.
        """

    def check_network(self, config: Any, where: Path) -> None:
        """Raises: UserError: if the network is of a kind that is not trained here."""

    def strangers(self) -> dict[str, bool]:
        """Of each pair of parts that must fit: what is wrong, in words → whether it is so."""
        words = {
            part: (len(tokenizer), self.configs[_encoder_of(part)].get_text_config().vocab_size)
            for part, tokenizer in self.tokenizers_of.items()
        }
        return {
            f"{part} knows {n} words, {_encoder_of(part)} {known}": not known / 2 <= n <= known
            for part, (n, known) in words.items()
        }

    def limits(self) -> dict[str, int]:
        """The most tokens of a text, start and end tokens included, by tokenizer that may cut it.

        A tokenizer whose file says nothing of it takes any length.
        """
        return {
            part: min(tokenizer.model_max_length, getattr(
                self.configs[_encoder_of(part)], "max_position_embeddings", 1 << 30))
            for part, tokenizer in self.tokenizers_of.items()
        }  # fmt: skip

    def vae_factor(self) -> int:
        """Pixels along a side of the image for one latent."""
        return 2 ** (len(self.configs["vae"].block_out_channels) - 1)

    def vae_encode(self, pixels: Float[Tensor, "b 3 H W"]) -> Tensor:
        """The autoencoder's raw latents of pixels in [−1, 1]."""
        encoded = self.vae.encode(pixels)
        return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()

    def vae_decode(self, latents: Float[Tensor, "b c h w"]) -> Tensor:
        """The autoencoder's pixels, about [−1, 1], of raw latents."""
        return self.vae.decode(latents).sample

    # reading

    @classmethod
    def load(
        cls,
        path: Path,
        device: torch.device,
        weights: Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        parts: Sequence[str] = PARTS,
    ) -> "DiffusersPolicy":
        policy = cls(path, device, dtype, parts)
        if weights is not None:
            policy.load_weights(weights)
        return policy

    def _part(self, kind: Any, part: str, wanted: bool) -> Any:
        """The part, None if it is not wanted; its config is kept in either case."""
        if wanted and self.device.type != "meta":
            module = load_part(kind, self.path, part, self._format).to(self.device)
        else:
            module = on_meta(kind, self.path / part)
        narrow = part == "vae" and module.dtype == torch.float16
        if narrow and self._format and module.config.get("force_upcast"):
            module = module.float()
        self.configs[part] = module.config
        return module if wanted else None

    def _encoder(self, part: str, index: JsonObject, wanted: bool) -> Any:
        if part in self.optional and not any(index.get(part) or ()):
            return None
        name, known = class_name(index, part, self.path), self.encoders[part]
        if name not in known:
            raise UserError(
                f"{self.path / part} is a {name}; {self.pipelines[0]} has {' or '.join(known)} "
                "there: restore the folder"
            )
        return self._part(transformers_class(name), part, wanted)

    def release(self, part: str) -> None:
        setattr(self, part, None)

    def move(self, part: str, device: torch.device) -> None:
        getattr(self, part).to(device)

    # text and images

    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        factor = self.pixels_per_latent
        unit = factor * self.patch
        if any(side <= 0 or side % unit for side in size):
            raise UserError(
                f"image_size {size} is not possible with this model; give a width and a height "
                f"that are multiples of {unit}"
            )
        return (self.channels, size.height // factor, size.width // factor)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        config = self.configs["vae"]
        return config.get("latent_channels") or config.get("z_dim")

    def check_prompts(self, texts: Sequence[str]) -> None:
        if not texts:  # tokenizers take no empty list
            return
        for part, limit in self.limits().items():
            tokenizer = self.tokenizers_of[part]
            own, *lengths = map(len, tokenizer(self.written(["", *texts]), verbose=False).input_ids)
            for text, length in zip(texts, lengths, strict=True):
                if length > limit:
                    raise UserError(
                        f"prompt {text!r} has {length - own} tokens and would be truncated; "
                        f"the model reads {limit - own}: shorten it"
                    )

    def written(self, texts: Sequence[str]) -> list[str]:
        """The texts as the tokenizers are given them, with what the model wants around them."""
        return list(texts)

    def tokens(self, part: str, texts: Sequence[str], length: int = 0) -> Any:
        """Ids and attention mask, each [b, length], padded and cut to a length; 0 = the limit."""
        return self.tokenizers_of[part](
            self.written(texts), padding="max_length", max_length=length or self.limits()[part],
            truncation=True, return_tensors="pt",
        ).to(self.device)  # fmt: skip

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        with self._vae_precision():
            latents = self.vae_encode(images.to(self.device, self.vae.dtype) * 2 - 1)
        return (latents.float() - self.mean) * self.scale

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        raw = latents / self.scale + self.mean
        with self._vae_precision():
            images = self.vae_decode(raw.to(self.vae.dtype))
        images = images.float() / 2 + 0.5
        # clamping alone would make white of infinity
        return torch.where(images.isfinite(), images.clamp(0, 1), torch.nan)

    def checkpoint_decoder(self) -> None:
        if self.vae._supports_gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()

    @contextmanager
    def _vae_precision(self) -> Iterator[None]:
        """Autocast as it is, but fp32 for an autoencoder that overflows in fp16."""
        kind = self.device.type
        narrow = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        if narrow and self.configs["vae"].get("force_upcast"):
            with torch.autocast(kind, enabled=False):
                yield
        else:
            yield

    def pipeline(self) -> Any:
        """The pipeline of diffusers with these parts, for what it converts and writes itself."""
        kind = getattr(diffusers, self.pipelines[0])
        index = read_json(self.path / "model_index.json")
        modules, options = kind._get_signature_keys(kind)
        parts = {
            self.network_part: unwrapped(self.network), "vae": self.vae,
            "scheduler": self.scheduler, **dict(self.text.items()), **self.tokenizers_of,
        }  # fmt: skip
        kept = {name: index[name] for name in options if name in index}
        return kind(**{name: parts.get(name) for name in modules}, **kept)

    # weights

    def save_weights(self, folder: Path) -> None:
        network: Any = unwrapped(self.network)
        if self.has_adapters:
            save_lora(network, self.network_part, self.pipelines[0], folder)
            return
        # where the base model lies is no part of what the weights are
        network.register_to_config(_name_or_path="")
        network.save_pretrained(folder / self.network_part)

    def load_weights(self, folder: Path) -> None:
        part = self.network_part
        if (folder / LORA_FILE).exists():
            merge_lora(self.network, part, self.lora_targets, folder / LORA_FILE)
        elif (folder / part).is_dir():
            saved = load_part(type(self.network), folder, part, self.dtype)
            put(self.network, saved.state_dict(), folder / part, REMAKE)
        else:
            raise UserError(
                f"{folder} holds neither {part}/ nor {LORA_FILE}; run sayso align again"
            )

    def load_beside(self, folder: Path) -> None:
        """Put adapters that `save_weights` wrote beside the network's own weights, in fp32.

        Raises: UserError: if they are not this network's.
        """
        load_lora(self.network, self.network_part, self.lora_targets, folder / LORA_FILE)

    def start_noise(
        self, generators: Sequence[torch.Generator], sampler: Sampler
    ) -> Float[Tensor, "b c h w"]:
        """The noise that the images start from, of each row's own generator, as pipelines draw."""
        shape = self.latent_shape(sampler.image_size)
        return noise_of(generators, shape, self.device)


def _encoder_of(tokenizer: str) -> str:
    return tokenizer.replace("tokenizer", "text_encoder")


def _normalisation(vae: Any, device: torch.device) -> tuple[Any, Any]:
    """What raw latents are multiplied by, and what is taken from them before."""

    def of_channels(name: str) -> Tensor | None:
        values = vae.get(name)
        return None if values is None else torch.tensor(values, device=device).view(1, -1, 1, 1)

    mean, std = of_channels("latents_mean"), of_channels("latents_std")
    scale = vae.get("scaling_factor") or 1.0
    return (scale if std is None else scale / std), (
        (vae.get("shift_factor") or 0.0) if mean is None else mean
    )
