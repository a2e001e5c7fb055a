"""A reward by its name: a plug-in as it is, or a run of `fit` or `reward` that made one."""

from pathlib import Path

import torch

from sayso.base.errors import UserError, quoted
from sayso.base.plugins import is_plugin, load_plugin, plugin_names, refuse_bad_options
from sayso.data.clip import resolve_clip
from sayso.rewards._contract import ClipReward, PretrainedReward, Reward, TrainableReward
from sayso.study.identity import NotHereError, NotMadeError, find_reward, model_folder
from sayso.study.inputs import refuse_edited
from sayso.study.run import Run
from sayso.study.study import Study


def load_reward(study: Study, name: str, device: torch.device | str = "cpu") -> Reward:
    """The reward called `name`, ready to score: a finished run of fit or reward, or a plug-in.

    Raises: UserError: if there is no such run or plug-in, the run is not finished, one's own file
        was edited since, or the plug-in has to be trained or added first.
    """
    if not is_plugin("reward", name):
        return _load_made(find_reward(study, name), study, device)
    reward = _class_as_it_is(study, name)()
    reward.prepare(study, device)
    return reward


def _class_as_it_is(study: Study, name: str) -> type[Reward]:
    """The class of the plug-in `name`, which can score without a run.

    Raises: UserError: if there is none, or it has to be trained or added first.
    """
    kind = load_reward_class(name)
    if stage := _stage_of(kind):
        done = {"fit": "trained", "reward": "added to the study"}[stage]
        raise UserError(
            f"reward {name!r} must be {done} first: run sayso {stage} {quoted(study.path)} "
            f"--reward {quoted(name)}, then give runs/{stage}-{Path(name).stem}"
        )
    return kind


def _stage_of(kind: type[Reward]) -> str:
    """The stage that a reward needs before it can score; "" for none."""
    if issubclass(kind, TrainableReward):
        return "fit"
    return "reward" if issubclass(kind, PretrainedReward) else ""


def reward_folders(study: Study, name: str) -> list[Path]:
    """The folders of the weights that `load_reward` reads: CLIP's, and those of the run if any."""
    runs = [] if is_plugin("reward", name) else [find_reward(study, name).weights]
    uses_clip = reads_clip(load_plugin("reward", _plugin(study, name), Reward))
    return [resolve_clip(study.info.clip_model), *runs] if uses_clip else runs


def reads_clip(kind: type[Reward]) -> bool:
    """Whether the rewards of this class use the study's CLIP."""
    return issubclass(kind, ClipReward) and not issubclass(kind, PretrainedReward)


def reward_at_hand(study: Study, name: str) -> tuple[Reward, list[Path]]:
    """The reward called `name`, not loaded, and the folders of its weights; fetches nothing.

    Raises: UserError: if there is no such reward; `NotMadeError` if its run is not finished;
        `NotHereError` if the study's CLIP is not on this machine.
    """
    run = None if is_plugin("reward", name) else find_reward(study, name)
    if run and not run.finished:
        raise NotMadeError(f"{run.name} is not finished")
    kind = load_reward_class(run.config["reward"]) if run else _class_as_it_is(study, name)
    folders = [run.weights] if run else []
    if reads_clip(kind):
        clip = model_folder(study.info.clip_model, "clip")
        if clip is None:
            raise NotHereError(f"CLIP {study.info.clip_model} is not on this machine")
        folders.append(clip)
    return kind(**(run.config["options"] if run else {})), folders


def is_differentiable(study: Study, name: str) -> bool:
    """Whether gradients pass through the reward called `name`, without loading it."""
    return load_plugin("reward", _plugin(study, name), Reward).differentiable


def _plugin(study: Study, name: str) -> str:
    return name if is_plugin("reward", name) else find_reward(study, name).config["reward"]


def load_trainable_reward(name: str) -> type[TrainableReward]:
    """The class of the reward plug-in `name` that the stage `fit` can train.

    Raises: UserError: if there is none, or the plug-in needs no training.
    """
    found = load_reward_class(name)
    if not issubclass(found, TrainableReward):
        able = [p for p in plugin_names("reward") if _is_trainable(p)]
        raise UserError(f"reward {name!r} needs no training; fit one of {', '.join(able)}")
    return found


def load_reward_class(name: str) -> type[Reward]:
    """The class of the reward plug-in `name`, whose fields are its options.

    Raises: UserError: if there is none, or its fields cannot be options.
    """
    found = load_plugin("reward", name, Reward)
    refuse_bad_options("reward", found)
    return found


def _is_trainable(plugin: str) -> bool:
    return issubclass(load_plugin("reward", plugin, Reward), TrainableReward)


def _load_made(run: Run, study: Study, device: torch.device | str) -> Reward:
    if not run.finished:
        stage = run.path.name.partition("-")[0]
        raise UserError(f"{run.name} is not finished; run the sayso {stage} that made it again")
    config = run.config
    refuse_edited(run, "reward", config["reward"])
    reward = load_reward_class(config["reward"])(**config["options"])
    reward.prepare(study, device, run.weights)
    return reward
