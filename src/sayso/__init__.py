"""Sayso aligns text-to-image models on people's say-so. The public names, imported when used.

    from sayso import AlignConfig, Study, align

    align(Study.open("my-study"), AlignConfig(max_steps=1000))

The command line is the same functions: `sayso align my-study --max-steps 1000`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sayso.aligners import Aligner, Batch, Work
    from sayso.base.errors import UserError
    from sayso.base.types import Comparison, Preference, Prompt, Rating, Sample, Sampler
    from sayso.families import Policy
    from sayso.judges import Judge, Verdict
    from sayso.rewards import ClipReward, PretrainedReward, Reward, TrainableReward
    from sayso.stages.agreement import AgreementConfig, agreement
    from sayso.stages.align import AlignConfig, align
    from sayso.stages.evaluate import EvaluateConfig, evaluate
    from sayso.stages.export import ExportConfig, export
    from sayso.stages.fit import FitConfig, fit
    from sayso.stages.generate import GenerateConfig, generate
    from sayso.stages.import_ import ImportConfig, import_table
    from sayso.stages.new import NewConfig, new
    from sayso.stages.prompts import PromptsConfig, write_prompts
    from sayso.stages.rate import RateConfig, rate
    from sayso.stages.report import ReportConfig, report
    from sayso.stages.reward import RewardConfig, add_reward
    from sayso.study.run import Run
    from sayso.study.study import Study

__all__ = [
    "AgreementConfig", "AlignConfig", "Aligner", "Batch", "ClipReward", "Comparison",
    "EvaluateConfig", "ExportConfig", "FitConfig", "GenerateConfig", "ImportConfig", "Judge",
    "NewConfig", "Policy", "Preference", "PretrainedReward", "Prompt", "PromptsConfig",
    "RateConfig", "Rating", "ReportConfig", "Reward", "RewardConfig", "Run", "Sample", "Sampler",
    "Study", "TrainableReward", "UserError", "Verdict", "Work", "add_reward", "agreement", "align",
    "evaluate", "export", "fit", "generate", "import_table", "new", "rate", "report",
    "write_prompts",
]  # fmt: skip

_HOMES = {
    "aligners": ("Aligner", "Batch", "Work"),
    "base.errors": ("UserError",),
    "base.types": ("Comparison", "Preference", "Prompt", "Rating", "Sample", "Sampler"),
    "families": ("Policy",),
    "judges": ("Judge", "Verdict"),
    "rewards": ("ClipReward", "PretrainedReward", "Reward", "TrainableReward"),
    "stages.agreement": ("AgreementConfig", "agreement"),
    "stages.align": ("AlignConfig", "align"),
    "stages.evaluate": ("EvaluateConfig", "evaluate"),
    "stages.export": ("ExportConfig", "export"),
    "stages.fit": ("FitConfig", "fit"),
    "stages.generate": ("GenerateConfig", "generate"),
    "stages.import_": ("ImportConfig", "import_table"),
    "stages.new": ("NewConfig", "new"),
    "stages.prompts": ("PromptsConfig", "write_prompts"),
    "stages.rate": ("RateConfig", "rate"),
    "stages.report": ("ReportConfig", "report"),
    "stages.reward": ("RewardConfig", "add_reward"),
    "study.run": ("Run",),
    "study.study": ("Study",),
}
"""Module → the public names that live there; `TYPE_CHECKING` says the same to type checkers."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"sayso.{home}"), name)
            return found
    raise AttributeError(f"module 'sayso' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
