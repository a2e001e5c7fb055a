"""Stage `report`: report.html, one page that carries everything with it, and summary.json."""

from dataclasses import dataclass
from pathlib import Path

from sayso.base.errors import UserError
from sayso.base.progress import console
from sayso.study.study import Study


@dataclass(frozen=True)
class ReportConfig:
    """What the report shows."""

    evaluation: str = ""
    """The run of evaluate to report on, such as runs/evaluate-rwr; default: the newest."""
    prompts_shown: int = 16
    """Maximum number of test prompts shown with their images, chosen at random by the study's
    seed."""


def report(study: Study, config: ReportConfig | None = None) -> Path:
    """Write report.html and summary.json from what the study holds so far.

    Parts whose stage has not run say what is missing and the command that makes it.

    Returns: the path of report.html.
    Raises: UserError: if the evaluation asked for is not there, or an image to show is damaged.
    """
    from sayso.reporting.page import render
    from sayso.reporting.report_data import ReportData
    from sayso.reporting.summary import summarise

    config = config or ReportConfig()
    if config.prompts_shown < 0:
        raise UserError(f"prompts_shown {config.prompts_shown} is negative; give 0 or more")
    data = ReportData(study, config.evaluation)
    summary = summarise(data)
    html = render(data, summary, config.prompts_shown)
    path = study.write_report(html)
    study.write_summary(summary)  # last: its presence means that all is there
    console.print(f"report: {path}")
    return path
