"""Stage `prompts`: write prompts.jsonl from a set, or from the user's own file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sayso.base.errors import UserError, check_seed
from sayso.base.files import JsonObject
from sayso.base.progress import console
from sayso.base.types import SPLITS, Prompt
from sayso.base.user_files import read_json_lines, read_text_lines
from sayso.base.worlds import find_world
from sayso.prompts.grammar import Sizes, load_grammar, make_prompt, make_prompts, share_out
from sayso.study.run import Run
from sayso.study.run_options import asked, continued
from sayso.study.study import Study

FIDELITY = 256
OWN_SPLITS = ("train", "validation", "seen", "unseen")
"""Those that prompts of one's own may be of."""


@dataclass(frozen=True)
class PromptsConfig:
    """Which prompts the study has. They cannot be changed later, because its images depend on
    them."""

    set: str = ""
    """Set of prompts: lee2023, a built-in world, or a JSON file with a grammar; default: the set of
    the study's world."""
    file: str = ""
    """Your own prompts instead of a set: a .txt file with one prompt per line, or a .jsonl file
    with text and optionally category, slots and split (train, validation, seen, unseen)."""
    train: int | None = None
    """Number of prompts for rating and training; default: the set's own."""
    test: int | None = None
    """Number of test prompts, half with objects that occur in training and half with objects that
    never do; default: the set's own. With a .txt file: lines held out for testing."""
    validation: int = 0
    """Number of prompts with objects that occur in training, neither trained nor tested on: to
    choose options on."""
    fidelity: int | None = None
    """Number of captions of held-out pre-training images, for measuring fidelity; default: 256, or
    0 if the study has no pre-training images."""
    seed: int | None = None
    """Seed for choosing prompts; default: the study's."""


def write_prompts(study: Study, config: PromptsConfig) -> Run:
    """Write the study's prompts.

    Raises: UserError: if the study has other prompts already, or the file or the numbers are bad.
    """
    if config.set and config.file:
        raise UserError(f"both --set {config.set} and --file {config.file} given; give one")
    check_seed(config.seed)
    _refuse_others(study, config)
    made = _made(study, config)
    _refuse_repeats(made)
    run = study.run("prompts", "", config)
    # an import appends its own prompts
    if run.finished and study.prompts()[: len(made)] != made:
        raise UserError(
            f"{config.file or config.set} or prompts.jsonl has changed since the prompts were "
            "written; restore it"
        )
    if not run.finished:
        study.write_prompts(made)
        run.finish(_counts(made))
    return run


def plan(study: Study, config: PromptsConfig) -> dict[str, object]:
    """How many prompts there would be, by split."""
    return dict(_counts(_made(study, config)))


def _made(study: Study, config: PromptsConfig) -> list[Prompt]:
    own = _own(study, config)
    if not own and not config.fidelity:
        raise UserError("these options make no prompts; raise --train or --test")
    return [*own, *_captions(study, config)]


def _counts(made: list[Prompt]) -> Mapping[str, int]:
    return {split: sum(p.split == split for p in made) for split in SPLITS}


def _refuse_others(study: Study, config: PromptsConfig) -> None:
    if not study.has_prompts:
        return
    try:
        run = study.find_run("prompts")
        continued(run.name, run.config, asked(config), finished=True)
    except UserError:
        raise UserError(
            f"{study.path} already has prompts, made with other options, and its images depend on "
            "them: use the old options, or make another study with sayso new"
        ) from None


def _own(study: Study, config: PromptsConfig) -> list[Prompt]:
    seed = study.info.seed if config.seed is None else config.seed
    if config.file:
        own = _from_file(Path(config.file), config, seed)
        _refuse_long(study, [prompt.text for prompt in own], config.file)
        return own
    grammar = load_grammar(config.set)
    return make_prompts(grammar, _sizes(config), seed)


def _sizes(config: PromptsConfig) -> Sizes:
    """The set's own numbers of prompts, each replaced where an option says otherwise."""
    grammar = load_grammar(config.set)
    if config.validation < 0:
        raise UserError(f"validation {config.validation} is not allowed; give 0 or more")
    if grammar.sizes and config.train is None and config.test is None and not config.validation:
        return grammar.sizes
    own = {
        split: sum(grammar.sizes.get(split, {}).values()) for split in ("train", "seen", "unseen")
    }
    train = own["train"] if config.train is None else config.train
    test = own["seen"] + own["unseen"] if config.test is None else config.test
    return share_out(
        grammar,
        train=train,
        seen=test - test // 2,
        unseen=test // 2,
        validation=config.validation,
    )


def _captions(study: Study, config: PromptsConfig) -> list[Prompt]:
    n = config.fidelity
    if n is not None and n < 0:
        raise UserError(f"fidelity {n} is not allowed; give 0 or more")
    if n is None:
        n = FIDELITY if study.info.pretraining else 0
    if not n:
        return []
    from sayso.data.pretraining_images import open_pretraining

    captions = open_pretraining(study).heldout_captions(n)
    if config.fidelity and not captions:
        raise UserError(
            f"none of the images in {study.info.pretraining} is held out (about one in ten is, by "
            "its name); give more images, or --fidelity 0"
        )
    if find_world(study.info.pretraining) is None:
        _refuse_long(study, captions, f"{study.info.pretraining}, held out,")
    if len(captions) < n:
        console.print(f"{len(captions)} fidelity prompts, one for each held-out image")
    return [make_prompt(c, "fidelity", "fidelity", n=i + 1) for i, c in enumerate(captions)]


def _refuse_long(study: Study, texts: list[str], where: str) -> None:
    """Refuse, while it can be changed, what the base model would cut, if its tokenizer is here."""
    from sayso.study.model_files import too_long

    if long := too_long(study.info.base_model, texts):
        raise UserError(
            f"{where} has {long.number} texts that {study.info.base_model} would truncate, such "
            f"as {long.text!r} with {long.tokens} tokens; it reads {long.limit}: shorten them"
        )


# the user's own file


def _from_file(path: Path, config: PromptsConfig, seed: int) -> list[Prompt]:
    suffix = path.suffix.lower()
    if suffix not in (".txt", ".jsonl"):
        raise UserError(
            f"prompt file {path} is neither .txt nor .jsonl; give a .txt file with one prompt per "
            'line, or a .jsonl file with one JSON object per line, such as {"text": "two cats"}'
        )
    for name, given in {"train": config.train is not None, "validation": config.validation}.items():
        if given:
            raise UserError(f"--{name} chooses from a prompt set; omit it with --file")
    if config.test is not None and suffix == ".jsonl":
        raise UserError("--test is for .txt files; in a .jsonl file, give each line its split")
    found = _jsonl(path) if suffix == ".jsonl" else _text(path, config.test or 0, seed)
    if not any(p.split == "train" for p in found):
        raise UserError(f"{path} has no train prompts; give at least one")
    return found


def _text(path: Path, test: int, seed: int) -> list[Prompt]:
    lines = read_text_lines(path)
    texts = list(dict.fromkeys(lines))
    if len(lines) > len(texts):
        console.print(f"{path}: {len(lines) - len(texts)} lines are repeated and count once")
    if test < 0 or (test and test >= len(texts)):
        raise UserError(f"--test {test} leaves no train prompts of {len(texts)}; give fewer")
    tests = set(np.random.default_rng([seed, 2]).permutation(len(texts))[:test].tolist())
    return [make_prompt(t, "seen" if i in tests else "train") for i, t in enumerate(texts)]


def _jsonl(path: Path) -> list[Prompt]:
    return [_row(where, row) for where, row in read_json_lines(path)]


def _row(where: str, row: JsonObject) -> Prompt:
    allowed = ("text", "category", "slots", "split")
    odd = sorted(row.keys() - set(allowed))
    if odd:
        raise UserError(f"{where} has unknown field {odd[0]!r}; allowed are {', '.join(allowed)}")
    text, category = row.get("text"), row.get("category", "custom")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where} has no text; give the prompt as a string under 'text'")
    if not isinstance(category, str) or not category:
        raise UserError(f"{where} has category {category!r}; give a word")
    split = row.get("split", "train")
    if split not in OWN_SPLITS:
        raise UserError(f"{where} has split {split!r}; choose one of {', '.join(OWN_SPLITS)}")
    return make_prompt(" ".join(text.split()), split, category, _slots(where, row.get("slots", {})))


def _slots(where: str, slots: object) -> dict[str, str | int]:
    types = {"object": str, "count": int, "colour": str, "background": str}
    if not isinstance(slots, dict):
        raise UserError(f"{where} has slots {slots!r}; give an object such as {{'object': 'dog'}}")
    for key, value in slots.items():
        if key not in types:
            raise UserError(f"{where} has unknown slot {key!r}; allowed are {', '.join(types)}")
        if not isinstance(value, types[key]) or isinstance(value, bool) or value in ("", 0):
            raise UserError(
                f"{where} has slot {key} {value!r}; give a {types[key].__name__}"
                f"{' of 1 or more' if key == 'count' else ''}"
            )
    return dict(slots)


def _refuse_repeats(made: list[Prompt]) -> None:
    where: dict[str, str] = {}
    for prompt in made:
        if prompt.split == "fidelity":
            continue
        if prompt.text in where:
            raise UserError(
                f"prompt {prompt.text!r} occurs twice (split {where[prompt.text]} and "
                f"{prompt.split}); a text belongs to one split: delete one"
            )
        where[prompt.text] = prompt.split
