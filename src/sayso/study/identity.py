"""What a name stands for: one canonical form of every name, and a digest of what is behind it.

A model is `base`, a run such as `runs/align-rwr`, or a selection such as
`base@best-4-of-16-by-fit-clip_head`. Its identity is a digest of contents, so the same weights have
one identity wherever they lie, and others under an old name have another.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from sayso.base.errors import UserError, quoted, unknown_name
from sayso.base.files import JsonObject
from sayso.base.hashes import file_digest, files_digest, folder_digest, weights_digest
from sayso.base.plugins import Kind, is_plugin, plugin_names
from sayso.base.types import digest
from sayso.base.worlds import find_world
from sayso.study.readable import ReadableStudy
from sayso.study.run import Run

C = TypeVar("C", bound=Any)
REWARD_STAGES = {"fit": "train", "reward": "add"}
"""Stages whose runs are rewards, and what they do."""
IMPORTED = "imported/"
"""Prefix of the models of imported images, which nothing but their pictures is known of."""


class NotHereError(UserError):
    """What a name stands for is not on this machine, so that its identity cannot be computed."""


class NotMadeError(UserError):
    """The run that a name stands for is still to be made, or to be finished."""


# names


def canonical_run(study: ReadableStudy, name: str) -> str:
    """`runs/<run>`, whether the run was named so, by its folder's name or by any path to it.

    Raises: UserError: for a path that leads out of the study's runs.
    """
    path = Path(name)
    if path.parent in (Path(), Path("runs")):
        return f"runs/{path.name}"
    if path.expanduser().resolve().parent == (study.path / "runs").resolve():
        return f"runs/{path.resolve().name}"
    raise UserError(f"{name} is not a run of {study.path}; give one as runs/<run>")


def canonical_plugin(name: str) -> str:
    """The name of a plug-in that ships with the package as it is, a file's as absolute path."""
    return str(Path(name).expanduser().resolve()) if name.endswith(".py") else name


def canonical_reward(study: ReadableStudy, name: str) -> str:
    """A run of fit or reward as `runs/<run>`, a plug-in as `canonical_plugin`; "" stays."""
    if not name or is_plugin("reward", name):
        return canonical_plugin(name)
    return canonical_run(study, name)


def canonical_model(study: ReadableStudy, name: str) -> str:
    """The one form of a model's name; "" and models of imported images stay as they are.

    A selection may be named `<model>@best-of-<n>` as long as only one of that n was made.

    Raises: UserError: if it is a path out of the study's runs, or several selections are meant.
    """
    drawn, at, selection = name.partition("@")
    if drawn and drawn != "base" and not drawn.startswith(IMPORTED):
        drawn = canonical_run(study, drawn)
    if not at or not re.fullmatch(r"best-of-\d+", selection):
        return f"{drawn}{at}{selection}"
    return _selection_meant(study, f"{drawn}@{selection}")


def canonical_options(study: ReadableStudy, options: JsonObject) -> JsonObject:
    """The options of a run that is there, in canonical form as far as they can be read so."""
    found = in_todays_words(options)
    for name in FORMS.keys() & options.keys():
        if isinstance(options[name], str):
            with contextlib.suppress(UserError):
                found[name] = FORMS[name](study, options[name])
    return found


def in_todays_words(options: JsonObject) -> JsonObject:
    """Options of an older run as this version writes them.

    Some were options of its aligner and are the loop's now; rwr's weight "label" was "mark", and
    images were square.
    """
    if "image_size_px" in options:
        side = options["image_size_px"]
        others = {k: v for k, v in options.items() if k != "image_size_px"}
        options = {**others, "image_size": str(side) if side else ""}
    own = options.get("options")
    if "aligner" not in options or not isinstance(own, dict):
        return dict(options)
    if options["aligner"] == "rwr" and own.get("weight") == "mark":
        own = {**own, "weight": "label"}
    if "pretraining_weight" in options:
        return {**options, "options": own}
    moved = {"pretraining_weight": own.get("pretraining_weight", 0.0)}
    if "pretraining_fraction" in own:
        moved["pretraining_fraction"] = own["pretraining_fraction"]
    return {**options, **moved, "options": {k: v for k, v in own.items() if k not in moved}}


def canonical_config(study: ReadableStudy, config: C) -> C:
    """The options of a stage with every model, reward and plug-in of one's own in canonical form.

    Raises: UserError: as `canonical_run` and `canonical_model`.
    """
    rows = {field.name: getattr(config, field.name) for field in fields(config)}
    forms = {n: FORMS[n](study, v) for n, v in rows.items() if n in FORMS and isinstance(v, str)}
    return config if forms.items() <= rows.items() else replace(config, **forms)


def stored_model(study: ReadableStudy, name: str) -> str:
    """The canonical form of a name in a record, which may be of before there was one form."""
    drawn, at, selection = name.partition("@")
    run = f"runs/{Path(drawn).name}"
    is_run = drawn != "base" and not drawn.startswith(("runs/", IMPORTED))
    there = is_run and (study.path / run / "config.json").exists()
    return f"{run}{at}{selection}" if there else name


def _selection_meant(study: ReadableStudy, short: str) -> str:
    """The selection that `<model>@best-of-<n>` means."""
    drawn = {sample.model for sample in study.samples()}
    found = sorted(m for m in drawn if (s := parse_selection(m)) and s.short == short)
    if short in drawn or not found:
        return short
    if len(found) > 1:
        raise UserError(
            f"{short} is ambiguous, it may mean {' or '.join(found)}; choose one of them"
        )
    return found[0]


def models_in(names: str) -> list[str]:
    """The models of a list with commas between; none of an empty one."""
    return [name.strip() for name in names.split(",") if name.strip()]


def _canonical_models(study: ReadableStudy, names: str) -> str:
    """A list of models in canonical form.

    Raises: UserError: if a model is named twice, or one is a selection, whose images are another's.
    """
    found = [canonical_model(study, name) for name in models_in(names)]
    for name in found:
        if found.count(name) > 1:
            raise UserError(f"{name} is named twice in {names}; name every model once")
        if "@" in name:
            raise UserError(
                f"{name} is a selection among images of {name.partition('@')[0]}; name that model"
            )
    return ",".join(found)


FORMS: dict[str, Callable[[ReadableStudy, str], str]] = {
    **dict.fromkeys(("model", "left", "right", "best_of"), canonical_model),
    "samples_of": _canonical_models,
    "reward": canonical_reward,
    **dict.fromkeys(("aligner", "judge"), lambda _, name: canonical_plugin(name)),
}
"""Option of a stage → the canonical form of what it names."""


class Selection(NamedTuple):
    """The best `kept` of `n` images of each prompt that `model` drew, chosen by `reward`.

    `reward` is the reward's short name (see `reward_name`).
    """

    model: str
    kept: int
    n: int
    reward: str

    @property
    def name(self) -> str:
        return f"{self.model}@best-{self.kept}-of-{self.n}-by-{self.reward}"

    @property
    def short(self) -> str:
        return f"{self.model}@best-of-{self.n}"


def parse_selection(name: str) -> Selection | None:
    """The parts of a selection's full name; None for any other."""
    found = re.fullmatch(r"(.+)@best-(\d+)-of-(\d+)-by-(.+)", name)
    return Selection(found[1], int(found[2]), int(found[3]), found[4]) if found else None


def chosen_from(model: str) -> tuple[str, int] | None:
    """The model and the n of a selection, full name or short; None for any other name."""
    found = re.fullmatch(r"(.+)@best-(?:\d+-)?of-(\d+)(?:-by-.+)?", model)
    return (found[1], int(found[2])) if found else None


def reward_name(reward: str) -> str:
    """A reward's canonical name without what is the same for all: `fit-clip_head`, `clip_score`.

    One's own file is called by its name and its content, for two may have the same name.
    """
    if reward.endswith(".py"):
        return f"{Path(reward).stem}.py-{plugin_digest('reward', reward)[:8]}"
    return reward.removeprefix("runs/")


def find_reward(study: ReadableStudy, name: str) -> Run:
    """The run of fit or reward that is called `name`.

    Raises: UserError: if there is none: how to make it (`NotMadeError`), or the nearest reward.
    """
    asked, known = canonical_run(study, name), plugin_names("reward")
    made = {run.name: run for stage in REWARD_STAGES for run in study.runs(stage)}
    if asked in made:
        return made[asked]
    stage, _, plugin = asked.removeprefix("runs/").partition("-")
    if stage in REWARD_STAGES and plugin in known:
        others = f", or choose {' or '.join(made)}" if made else ""
        raise NotMadeError(
            f"there is no reward {asked}; {REWARD_STAGES[stage]} it with: sayso {stage} "
            f"{quoted(study.path)} --reward {plugin}{others}"
        )
    raise unknown_name("reward", asked.removeprefix("runs/"), [*known, *made])


# identities


def plugin_digest(kind: Kind, name: str) -> str:
    """A hash of the source of one's own plug-in; "" for those that ship with the package.

    Raises: UserError: if the file does not exist.
    """
    if not name.endswith(".py"):
        return ""
    try:
        return file_digest(Path(name).expanduser())[:16]
    except OSError as error:
        raise UserError(
            f"{kind} file {name} cannot be read ({error.strerror}); restore it, or give another"
        ) from None


def model_identity(study: ReadableStudy, model: str) -> str:
    """A hash of all that decides what the model draws, 16 hex digits.

    Of the base: of its folder. Of an align run: of its weights and of the model they are laid over,
    so a run made anew has the same identity only if its weights are the same. Of a selection: of
    the model that drew, of the reward, and of how many were kept of how many.

    Args:
        model: its canonical name; a selection's full one.
    Raises:
        NotHereError: if weights are not on this machine.
        UserError: if the run is not finished or made no model.
    """
    selection = parse_selection(model)
    if selection:
        reward = _reward_of(selection.reward)
        if reward:
            chosen_by = reward_identity(study, reward)
        else:
            chosen_by = digest([selection.reward, clip_identity(study)])
        drawn = model_identity(study, selection.model)
        return digest([drawn, chosen_by, selection.kept, selection.n])
    if model == "base":
        return base_identity(study)
    with _as_absence():
        run = study.find_run(model, "align")
    if not run.finished or "aligner" not in run.config:
        raise UserError(
            f"{run.name} is not a finished run of align; finish it or choose another --model"
        )
    return weights_identity(study, run)


def weights_identity(study: ReadableStudy, run: Run) -> str:
    """The identity of the model that a run of align has written the weights of."""
    below = model_identity(study, canonical_model(study, run.config.get("model", "base")))
    return digest([_weights(run), below])


def base_identity(study: ReadableStudy) -> str:
    """A hash of the base model's folder. Raises: NotHereError: if it is not on this machine."""
    return _folder_identity(study.info.base_model, "pipeline", "base model")


def clip_identity(study: ReadableStudy) -> str:
    """A hash of the CLIP's folder. Raises: NotHereError: if it is not on this machine."""
    return _folder_identity(study.info.clip_model, "clip", "CLIP")


def reward_identity(study: ReadableStudy, reward: str) -> str:
    """A hash of all that decides a reward's scores, 16 hex digits.

    Of a run of fit or reward: of its weights and options, of one's own source, and of the CLIP if
    it uses the study's; of a plug-in: of its name or own source, and of the CLIP.

    Args:
        reward: its canonical name.
    Raises:
        NotHereError: if weights or the CLIP are not on this machine.
        UserError: if the run is not finished.
    """
    if is_plugin("reward", reward):
        source = plugin_digest("reward", reward)
        return digest([source or reward, clip_identity(study)])
    with _as_absence():
        run = find_reward(study, reward)
    if not run.finished:
        stage = run.path.name.partition("-")[0]
        raise UserError(f"{run.name} is not finished; run the sayso {stage} that made it again")
    return fitted_identity(study, run, reads_clip=run.result.get("reads_clip", True))


def fitted_identity(study: ReadableStudy, run: Run, *, reads_clip: bool = True) -> str:
    """The identity of the reward that a run of fit or reward has written the weights of.

    Args:
        reads_clip: whether it uses the study's CLIP.
    """
    plugin = run.config.get("reward", "clip_head")
    source = plugin_digest("reward", plugin) or plugin
    clip = [clip_identity(study)] if reads_clip else []
    return digest([source, run.config.get("options"), _weights(run), *clip])


def _reward_of(short: str) -> str:
    """The reward behind a selection's short name; "" if that is a file's name and content."""
    if re.search(r"\.py-[0-9a-f]{8}$", short):
        return ""
    return short if short in plugin_names("reward") else f"runs/{short}"


@contextlib.contextmanager
def _as_absence() -> Iterator[None]:
    """A block in which a run is looked for that may be missing."""
    try:
        yield
    except UserError as error:
        raise NotHereError(str(error)) from None


def _weights(run: Run) -> str:
    if not run.weights.is_dir():
        raise NotHereError(f"{run.weights} is missing; restore it, or make the run again")
    added = run.path.name.startswith("reward-")
    return files_digest(run.weights) if added else weights_digest(run.weights)


def _folder_identity(name: str, shipped: Literal["pipeline", "clip"], what: str) -> str:
    folder = model_folder(name, shipped)
    if folder is None:
        raise NotHereError(f"the {what} {name} is not on this machine; fetch or restore it")
    return folder_digest(folder)


def model_folder(name: str, shipped: Literal["pipeline", "clip"]) -> Path | None:
    """The folder of a world, of a path or of a hub id that was fetched; None if there is none.

    Never fetches anything, and needs no torch.
    """
    if world := find_world(name):
        return world.base_model if shipped == "pipeline" else world.clip_model
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, local_files_only=True))
    except (ImportError, OSError, ValueError):
        return None
