"""Variables of the environment do not change what is trained, or are recorded."""

from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from sayso.base.devices import OVERRIDES, PATIENCE, make_accelerator
from sayso.base.errors import UserError
from sayso.study.info import StudyInfo
from sayso.study.provenance import computed_on
from sayso.study.study import Study


def test_accelerates_variables_do_not_change_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    accelerator = make_accelerator("no")
    weight = torch.ones(1, requires_grad=True)
    accelerator.backward((3 * weight).sum())
    assert weight.grad is not None
    assert weight.grad.item() == 3
    assert accelerator.mixed_precision == "no"
    assert accelerator.state.dynamo_plugin.backend.value == "NO"


@pytest.mark.parametrize("name", OVERRIDES)
def test_another_way_of_training_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(UserError, match=f"the variable {name} is set"):
        make_accelerator("no")


def test_what_changes_rounding_is_recorded_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Study.create(tmp_path / "study", StudyInfo("s")).run("x", "", {})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    facts = computed_on(make_accelerator("no"))
    assert facts["variables"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert facts["threads"] == torch.get_num_threads()
    run.add_environment(facts)
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    run.add_environment(computed_on(make_accelerator("no")))
    said = " ".join(capsys.readouterr().err.split())
    assert "other conditions than it began with (variables); the last bits may differ" in said


def test_processes_wait_for_each_other_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(PartialState, "__init__", lambda self, **kw: given.append(kw["timeout"]))
    from sayso.base import devices

    devices._process()
    assert given == [PATIENCE]
    assert PATIENCE.total_seconds() > 3600
