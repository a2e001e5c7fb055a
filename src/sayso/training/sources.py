"""Identities of what a run learns with, fetched first where it is not on this machine."""

from sayso.data.clip import resolve_clip
from sayso.families._loading import model_folders
from sayso.study.identity import NotHereError, clip_identity, model_identity, reward_identity
from sayso.study.study import Study


def source_of_model(study: Study, model: str) -> dict[str, str]:
    """The model and its identity; a base that is not on this machine is fetched."""
    try:
        found = model_identity(study, model)
    except NotHereError:
        model_folders(study, model)
        found = model_identity(study, model)
    return {f"model {model}": found}


def source_of_reward(study: Study, reward: str) -> dict[str, str]:
    """The reward and its identity; a CLIP that is not on this machine is fetched."""
    try:
        found = reward_identity(study, reward)
    except NotHereError:
        source_of_clip(study)
        found = reward_identity(study, reward)
    return {f"reward {reward}": found}


def source_of_clip(study: Study) -> dict[str, str]:
    """The study's CLIP and its identity; one that is not on this machine is fetched."""
    try:
        found = clip_identity(study)
    except NotHereError:
        resolve_clip(study.info.clip_model)
        found = clip_identity(study)
    return {f"CLIP {study.info.clip_model}": found}
