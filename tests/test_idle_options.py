"""Options that would change nothing are refused, in one line; at their defaults they are not."""

import json
import shlex
from pathlib import Path

import pytest

from sayso.base.errors import UserError
from sayso.cli import commands as cli
from sayso.cli.options import parse
from sayso.stages.align import AlignConfig
from sayso.training.needs import check_options

ONLINE = [
    "--images 64", "--group-size 4", "--advantage-clip 2", "--times-per-image 2",
    "--old-decay 0.3",
]  # fmt: skip
IDLE = [
    *(("nft", idle, "", "--score rollouts", "without --score rollouts") for idle in ONLINE),
    ("nft", "--images 64", "--score reward", "--score rollouts", "without --score rollouts"),
    ("nft", "--centred", "--score rollouts", "--score reward", "with --score rollouts"),
    ("awm", "--beta 50", "", "--groups", "without --groups"),
    ("grpo", "--divergence-limit 0.1", "", "--trust dppo", "with --trust clip"),
    ("grpo", "--clip-range 0.1", "--trust dppo", "", "with --trust dppo"),
    *(
        ("direct_align", idle, "--source rollouts --last-steps 1", "", "with --last-steps 1")
        for idle in ("--stride 0.5", "--most-noise 0.5")
    ),
    ("rwr", "--no-unrated", "--weight label", "--weight product", "with --weight label"),
]
"""Aligner, option, what makes it idle, what gives it an effect, and what the refusal says."""


def given(aligner: str, options: str) -> object:
    line = ["study", "--aligner", aligner, *shlex.split(options)]
    return parse("align", AlignConfig, "aligner", line).options


@pytest.mark.parametrize(("aligner", "idle", "mode", "other", "says"), IDLE)
def test_an_option_without_effect_is_refused(
    aligner: str, idle: str, mode: str, other: str, says: str
) -> None:
    with pytest.raises(UserError, match=f"^{idle}.* would have no effect {says}.*; omit it$"):
        given(aligner, f"{mode} {idle}")
    assert given(aligner, mode), "without the option"
    assert given(aligner, f"{other} {idle}") != given(aligner, other)


TIMES = "timestep_sampling grid would have no effect, for aligner {} learns from steps of drawing"
LAST = "direct_align --source rollouts --last-steps 1"
OF_THE_LOOP = [
    ("sft --pretraining-fraction 0.5", "pretraining_fraction 0.5 is about pre-training images"),
    ("sft --pretraining-draw reward", "pretraining_draw reward is about pre-training images"),
    ("grpo --timestep-sampling grid --images 64", TIMES.format("GroupPolicy")),
    (f"{LAST} --timestep-sampling grid", TIMES.format("DirectAlign")),
]


def checked(line: str) -> None:
    parsed = parse("align", AlignConfig, "aligner", ["study", "--aligner", *line.split()])
    check_options(parsed.config.for_aligner(parsed.options.defaults), parsed.options, 1)


@pytest.mark.parametrize(("line", "says"), OF_THE_LOOP)
def test_options_of_the_loop_without_effect_are_refused(line: str, says: str) -> None:
    with pytest.raises(UserError, match=f"^{says}.*omit it$"):
        checked(line)
    fraction = "" if "fraction" in line else " --pretraining-fraction 0.25"
    checked(f"{line} --pretraining-weight 1{fraction}")


@pytest.mark.parametrize(
    "line",
    ["grpo", LAST, "direct_align --timestep-sampling grid", "sft --pretraining-fraction 0",
     "rwr --pretraining-fraction 0.5"],
)  # fmt: skip
def test_those_with_an_effect_or_at_their_defaults_are_accepted(line: str) -> None:
    checked(line)


def test_at_its_default_it_is_accepted(tmp_path: Path) -> None:
    """Even where a config file has another, as of a run that had use for it."""
    assert given("grpo", "--trust clip --divergence-limit 1e-5") == given("grpo", "")
    saved = {"aligner": "grpo", "options": {"trust": "dppo", "divergence_limit": 0.1}}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"--divergence-limit 0\.1 would have no effect"):
        given("grpo", f"--config {config} --trust clip")
    again = given("grpo", f"--config {config} --trust clip --divergence-limit 1e-5")
    assert again == given("grpo", "")


def test_on_the_command_line_it_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop, cli.plain_errors():
        cli.run(["align", str(tmp_path), "--aligner", "nft", "--images", "64"])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith("--images 64 would have no effect without --score rollouts; omit it")
    assert "\n" not in said
