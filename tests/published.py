"""Rewards as their authors publish them, but tiny and random: files for `sayso reward`."""

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from clips import LETTERS, WIDTH, tiny_clip
from own_blip import AuthorsImageReward
from own_clip import OpenClip
from own_vlm import tiny_vlm
from reward_server import shared_server
from torch import nn
from transformers import BertTokenizer

from sayso.cli import commands as cli
from sayso.study.study import Study

BERT_WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS),
]  # fmt: skip


@dataclass
class Given:
    """What a command line gives to add a reward: the paths of its parts, and its options."""

    parts: dict[str, Path] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)

    @property
    def flags(self) -> list[str]:
        pairs = {**self.parts, **self.options}
        return [word for name, value in pairs.items() for word in (f"--{name}", str(value))]


def pickscore(folder: Path) -> Given:
    return Given({"weights": tiny_clip(folder / "pickscore", seed=1)})


def aesthetic_layers() -> nn.Sequential:
    """The five layers of v2 where the authors have them, dropouts between, of random weights."""
    torch.manual_seed(2)
    widths = (WIDTH, 20, 12, 8, 4, 1)
    linear = [nn.Linear(a, b) for a, b in pairwise(widths)]
    layers = nn.Sequential(
        linear[0], nn.Dropout(0.2), linear[1], nn.Dropout(0.2), linear[2], nn.Dropout(0.1),
        linear[3], linear[4],
    )  # fmt: skip
    return layers.eval()


def aesthetic(folder: Path) -> Given:
    file = folder / "aesthetic.pth"
    torch.save({f"layers.{k}": v for k, v in aesthetic_layers().state_dict().items()}, file)
    return Given({"weights": file, "clip": tiny_clip(folder / "clip-of-aesthetic", seed=3)})


def hps(folder: Path) -> Given:
    """A pickle with what its authors' has beside the weights, and CLIP's tokenizer apart."""
    torch.manual_seed(4)
    words = tiny_clip(folder / "words-of-hps", seed=5)
    vocabulary = json.loads((words / "vocab.json").read_text())
    file = folder / "hps.pt"
    model = OpenClip(vocabulary=len(vocabulary))
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, file)
    options = dict.fromkeys(("vision-heads", "text-heads"), "2")
    options |= {"vision-layers": "2", "text-layers": "1", "version": "2.0"}
    return Given({"weights": file, "tokenizer": words}, options)


def image_reward(folder: Path) -> Given:
    """The authors' state dict, with what no score uses, and BERT's tokenizer."""
    torch.manual_seed(6)
    file, words = folder / "ImageReward.pt", folder / "words-of-image-reward"
    words.mkdir(parents=True)
    (words / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n")
    BertTokenizer(str(words / "vocab.txt")).save_pretrained(words)
    tensors = AuthorsImageReward(vocabulary=len(BERT_WORDS) + 2).state_dict()
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(tensors, file)
    options = {"vision-heads": "2", "vision-layers": "2", "text-heads": "2", "text-layers": "2"}
    return Given({"weights": file, "tokenizer": words}, options)


def jpeg(folder: Path) -> Given:
    return Given(options={"prefer": "large", "quality": "90"})


GIVEN = {
    "pickscore": pickscore,
    "aesthetic": aesthetic,
    "hps": hps,
    "image_reward": image_reward,
    "jpeg": jpeg,
    "remote": lambda _: Given(options={"url": shared_server().url}),
    "vlm_yes": lambda folder: Given({"weights": tiny_vlm(folder / "vlm")}),
}
"""Name of a reward → what makes its files in a folder."""


def add(study: Study, name: str, folder: Path) -> str:
    """Publish the reward in the folder, add it to the study by the command line; the run's name."""
    folder.mkdir(exist_ok=True)
    cli.run(["reward", str(study.path), "--reward", name, *GIVEN[name](folder).flags])
    return f"runs/reward-{name}"
