"""Programs that rate as people do: into the store at once, or through the rating app."""

from typing import TYPE_CHECKING

from sayso.study.study import Study
from sayso.tinyworld.rating import RaterOptions, collect, count

if TYPE_CHECKING:
    from sayso.web.work.tasks import TaskOptions

__all__ = ["collect", "collect_through_app", "count"]


def collect_through_app(study: Study, config: RaterOptions, task: "TaskOptions") -> int:
    """Make the votes that are missing by working in the rating app, signed in and over HTTP."""
    from sayso.tinyworld import app_raters

    return app_raters.collect(study, config, task)
