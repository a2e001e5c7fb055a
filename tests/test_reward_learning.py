"""How the head of the paper's reward learns, each step written out."""

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clips import colour_study, rate_all, tiny_clip
from torch import Tensor

from sayso.base import files
from sayso.base.devices import best_precision
from sayso.data.reading import Read
from sayso.prompts.grammar import load_grammar
from sayso.rewards import RatedSamples
from sayso.rewards.clip_head import ClipHead, _Fit, _grammar
from sayso.rewards.clip_score import ClipScore
from sayso.stages.fit import FitConfig, collect
from sayso.study.study import Study

OPTIONS = {"hidden_width": 8, "batch_size": 5, "mixed_precision": "no", "n_altered": 3}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Four rated prompts of four images; shared, not to be changed but for its runs."""
    folder = tmp_path_factory.mktemp("study")
    study = colour_study(folder / "study", tiny_clip(folder / "clip"), train=4, per_prompt=4)
    rate_all(study)
    return study


@pytest.fixture(scope="module")
def prepared(study: Study) -> ClipHead:
    reward = ClipHead(**OPTIONS)
    reward.prepare(study, "cpu")
    return reward


@pytest.fixture(scope="module")
def rated(study: Study) -> RatedSamples:
    """The last prompt's rows are held out."""
    data = collect(study, FitConfig())
    heldout = [p.id == data.prompts[-1].id for p in data.prompts]
    assert sum(heldout) == 4
    return RatedSamples(data.samples, data.prompts, data.labels, heldout)


RUNS: Iterator[int] = iter(range(1000))


def learning(study: Study, prepared: ClipHead, rated: RatedSamples, **changes: object) -> _Fit:
    reward = dataclasses.replace(prepared, **changes)
    reward.clip = prepared.clip
    return _Fit(reward, study, rated, study.run("fit", f"r{next(RUNS)}", {}))


def unit(x: Tensor) -> Tensor:
    return x / (x**2).sum(1, keepdim=True).sqrt()


def test_a_new_head_comes_from_its_seed_alone(prepared: ClipHead) -> None:
    reward = dataclasses.replace(prepared, dropout=0.25, joining="interaction")
    reward.clip = prepared.clip
    torch.manual_seed(7)
    before, states = torch.get_rng_state(), []
    for seed in (3, 3, 4):
        reward.new_head(seed)
        states.append(reward.head.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    same, other = (all(torch.equal(states[0][n], s[n]) for n in s) for s in states[1:])
    assert same
    assert not other
    head = reward.head
    assert head.interaction
    assert not head.training
    assert not any(p.requires_grad for p in head.parameters())
    assert [m.p for m in head.layers if hasattr(m, "p")] == [0.25, 0.25]
    assert head.layers[3].in_features == 8
    prepared.new_head(3)
    assert not prepared.head.interaction


def test_what_is_learned_from_is_the_rows_as_given(
    study: Study, prepared: ClipHead, rated: RatedSamples
) -> None:
    fitting = learning(study, prepared, rated, learning_rate=0.02, weight_decay=0.3)
    texts = prepared.clip.texts([p.text for p in rated.prompts])
    torch.testing.assert_close(fitting.texts, texts)
    assert fitting.labels.tolist() == rated.labels
    assert fitting.heldout.tolist() == rated.heldout
    assert len(fitting.images) == len(rated.samples)
    assert fitting.prompts == rated.prompts
    optimizer = fitting.optimizer
    assert type(optimizer) is torch.optim.AdamW
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.3)
    ours, heads = group["params"], list(fitting.reward.head.parameters())
    assert [id(p) for p in ours] == [id(p) for p in heads]
    assert (fitting.reward.head.image_mean == 0).all()
    # the weights to begin with are those of the study's seed
    begun = fitting.reward.head.state_dict()
    fitting.reward.new_head(study.info.seed)
    assert all(torch.equal(begun[n], v) for n, v in fitting.reward.head.state_dict().items())


def test_the_means_are_those_of_the_rows_that_are_not_held_out(
    study: Study, prepared: ClipHead, rated: RatedSamples
) -> None:
    fitting = learning(study, prepared, rated, joining="interaction")
    head, rows = fitting.reward.head, torch.tensor(rated.heldout).logical_not()
    images, texts = unit(fitting.images[rows]), unit(fitting.texts[rows])
    torch.testing.assert_close(head.image_mean, images.sum(0) / 12)
    torch.testing.assert_close(head.text_mean, texts.sum(0) / 12)
    torch.testing.assert_close(head.cosine_mean, ((images * texts).sum() / 12)[None])


def test_an_epoch_takes_every_row_once_in_another_order(
    study: Study, prepared: ClipHead, rated: RatedSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitting, taken = learning(study, prepared, rated), []

    def update(rows: Tensor) -> dict[str, float]:
        assert fitting.reward.head.training
        taken.append(rows.tolist())
        losses = {"squared_error": float(len(rows))}
        return losses | ({"other": 7.0} if len(taken) % 3 == 0 else {})

    monkeypatch.setattr(fitting, "_update", update)
    # the mean of each loss over the batches that have it: of 5, 5 and 2 rows
    assert fitting._epoch() == {"squared_error": 4.0, "other": 7.0}
    assert not fitting.reward.head.training
    fitting._epoch()
    assert [len(rows) for rows in taken] == [5, 5, 2] * 2
    first, second = ([i for rows in some for i in rows] for some in (taken[:3], taken[3:]))
    learned = [i for i, held in enumerate(rated.heldout) if not held]
    assert sorted(first) == sorted(second) == learned
    assert len({tuple(first), tuple(second), tuple(learned)}) == 3


def test_each_update_starts_from_its_own_gradient(
    study: Study, prepared: ClipHead, rated: RatedSamples
) -> None:
    """Two steps of plain descent on the squared error, by autograd."""
    fitting = learning(study, prepared, rated, prompt_classification_weight=0.0)
    head = fitting.reward.head.requires_grad_(True)
    by_hand = copy.deepcopy(head)
    fitting.optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    for rows in (torch.tensor([0, 3, 5]), torch.tensor([1, 2])):
        scores = by_hand(fitting.images[rows], fitting.texts[rows])
        loss = ((fitting.labels[rows] - scores) ** 2).mean()
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        logged = fitting._update(rows)
        assert logged == pytest.approx({"squared_error": loss.item()})
        with torch.no_grad():
            for p, g in zip(by_hand.parameters(), gradients, strict=True):
                p -= 0.5 * g
    for ours, theirs in zip(head.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert fitting.step == 2


def test_altered_prompts_are_scored_with_their_own_image(
    study: Study, prepared: ClipHead, rated: RatedSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """−∞ where a prompt has fewer; only good images take part, with the temperature asked for."""
    fitting = learning(study, prepared, rated, temperature=0.7)
    others = {0: ["a red sea", "a blue sea"], 1: [], 2: ["a pink sea"] * 3}
    rows = torch.tensor([0, 5, 10])
    prompts = {rated.prompts[row].id: others[i] for i, row in enumerate(rows.tolist())}
    assert len(prompts) == 3
    monkeypatch.setattr(fitting, "_altered", lambda prompt: prompts[prompt.id])
    found = fitting._altered_scores(rows)
    head, clip = fitting.reward.head, fitting.reward.clip
    for i, row in enumerate(rows.tolist()):
        for k in range(3):
            if k >= len(others[i]):
                assert found[i, k] == -math.inf
                continue
            alone = head(fitting.images[row : row + 1], clip.texts([others[i][k]]))
            torch.testing.assert_close(found[i, k : k + 1], alone)
    fitting.labels = torch.full_like(fitting.labels, 0.5)
    assert fitting._losses(rows).keys() == {"squared_error"}
    fitting.labels[rows[2]] = 0.51
    own = head(fitting.images[rows[2:]], fitting.texts[rows[2:]])
    odds = (torch.cat([own, found[2]]) / 0.7).softmax(0)
    loss = fitting._losses(rows)["prompt_classification_loss"]
    torch.testing.assert_close(loss, -odds[0].log())


def test_prompts_are_altered_by_the_grammar(
    study: Study, prepared: ClipHead, rated: RatedSamples
) -> None:
    fitting = learning(study, prepared, rated)
    prompt = rated.prompts[0]
    found = fitting._altered(prompt)
    assert len(set(found)) == 3
    assert prompt.text not in found
    assert fitting._altered(prompt) != found
    assert fitting._altered(dataclasses.replace(prompt, slots={})) == []
    fitting.grammar = None
    assert fitting._altered(prompt) == []


def test_whether_prompts_are_classified(
    study: Study, prepared: ClipHead, rated: RatedSamples
) -> None:
    assert learning(study, prepared, rated, prompt_classification_weight=0.1).classifies
    assert learning(study, prepared, rated, n_altered=1).classifies
    assert not learning(study, prepared, rated, prompt_classification_weight=0.0).classifies
    assert not learning(study, prepared, rated, n_altered=0).classifies
    free = learning(study, prepared, rated)
    free.prompts = [dataclasses.replace(p, slots={}) for p in free.prompts]
    assert not free.classifies
    none = learning(study, prepared, rated)
    none.grammar = None
    assert not none.classifies


def test_the_heldout_error_is_the_mean_over_the_rows_held_out(
    study: Study, prepared: ClipHead, rated: RatedSamples
) -> None:
    fitting = learning(study, prepared, rated)
    rows = torch.tensor([i for i, held in enumerate(rated.heldout) if held])
    scores = fitting.reward.head(fitting.images[rows], fitting.texts[rows])
    expected = ((scores - fitting.labels[rows]) ** 2).mean().item()
    assert fitting._heldout_error() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("errors", "options", "best", "epochs"),
    [
        ([0.5, 0.4, 0.45, 0.4, 0.1], {"patience": 2}, 2, 4),
        ([0.5, 0.4, 0.45, 0.3, 0.35, 0.1], {"patience": 2, "max_epochs": 5}, 4, 5),
        ([0.5, 0.6, 0.1], {"patience": 1}, 1, 2),
        ([0.5], {"max_epochs": 1}, 1, 1),
    ],
)
def test_the_best_epoch_is_kept_and_patience_ends_the_rest(
    study: Study, prepared: ClipHead, rated: RatedSamples, monkeypatch: pytest.MonkeyPatch,
    errors: list[float], options: dict[str, int], best: int, epochs: int,
) -> None:  # fmt: skip
    fitting = learning(study, prepared, rated, **options)
    head, left, done = fitting.reward.head, iter(errors), []

    def epoch() -> dict[str, float]:
        """Leaves its own number in every weight."""
        assert all(p.requires_grad for p in head.parameters())
        done.append(1)
        with torch.no_grad():
            for p in head.parameters():
                p.fill_(len(done))
        return {"squared_error": 10.0 * len(done)}

    monkeypatch.setattr(fitting, "_epoch", epoch)
    monkeypatch.setattr(fitting, "_heldout_error", lambda: next(left))
    facts = fitting.run()
    assert len(done) == epochs
    assert (facts["best_epoch"], facts["epochs"]) == (best, epochs)
    assert all((p == best).all() and not p.requires_grad for p in head.parameters())
    assert [
        {k: row[k] for k in ("step", "squared_error", "heldout_squared_error")}
        for row in fitting.log_to.history()
    ] == [
        {"step": i + 1, "squared_error": 10.0 * (i + 1), "heldout_squared_error": errors[i]}
        for i in range(epochs)
    ]


@pytest.mark.parametrize("precision", ["no", "bf16", "auto"])
def test_learning_computes_in_the_format_asked_for(
    study: Study, prepared: ClipHead, rated: RatedSamples, precision: str
) -> None:
    fitting = learning(study, prepared, rated, mixed_precision=precision)
    half = precision == "bf16" or (precision == "auto" and best_precision() == "bf16")
    formats = set()
    fitting.reward.head.layers[0].register_forward_hook(
        lambda module, inputs, output: formats.add(output.dtype)
    )
    fitting.reward.head.requires_grad_(True)
    fitting._update(torch.arange(5))
    assert formats == {torch.bfloat16 if half else torch.float32}
    assert fitting.bf16 == half


def test_everything_lies_where_clip_computes(
    study: Study, prepared: ClipHead, rated: RatedSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device of no numbers, for this machine may have the CPU alone."""

    class Elsewhere:
        device, width = torch.device("meta"), prepared.clip.width

        def texts(self, texts: list[str]) -> Tensor:
            return torch.zeros(len(texts), self.width, device=self.device)

    stored = torch.zeros(len(rated.samples), prepared.clip.width)
    monkeypatch.setattr("sayso.rewards.clip_head.embed_samples", lambda *_: stored)
    reward = dataclasses.replace(prepared)
    reward.clip = Elsewhere()  # type: ignore[assignment]
    fitting = _Fit(reward, study, rated, study.run("fit", f"r{next(RUNS)}", {}))
    tensors = [fitting.images, fitting.texts, fitting.labels, *reward.head.parameters()]
    assert {t.device.type for t in tensors} == {"meta"}


def test_stored_embeddings_are_scored_where_clip_computes(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def score(self: ClipScore, images: Tensor, texts: Tensor) -> Tensor:
        seen.extend([images.device.type, texts.device.type])
        return torch.zeros(len(images))

    monkeypatch.setattr(ClipScore, "score_embeddings", score)
    monkeypatch.setattr("sayso.rewards._contract.embed_samples", lambda *_: torch.zeros(2, 24))
    reward = ClipScore()
    reward.clip = SimpleNamespace(  # type: ignore[assignment]
        texts=lambda texts: torch.zeros(len(texts), 24, device="meta"),
        how_read=lambda texts: [Read.WHOLE] * len(texts),
    )
    reward.score_samples(study, study.samples()[:2], ["a", "b"])
    assert seen == ["meta", "meta"]


def test_bf16_does_not_follow_the_devices_usual_half(
    study: Study, prepared: ClipHead, rated: RatedSamples
) -> None:
    """That of CUDA is fp16, in which a loss may overflow."""
    fitting, formats = learning(study, prepared, rated, mixed_precision="bf16"), set()
    fitting.reward.head.layers[0].register_forward_hook(
        lambda module, inputs, output: formats.add(output.dtype)
    )
    fitting.reward.head.requires_grad_(True)
    usual = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)
    try:
        fitting._update(torch.arange(5))
    finally:
        torch.set_autocast_dtype("cpu", usual)
    assert formats == {torch.bfloat16}


def test_a_fit_says_what_it_did_and_leaves_chance_as_it_was(
    study: Study, prepared: ClipHead, rated: RatedSamples
) -> None:
    """Twice the same, whatever was drawn before."""
    kept = []
    for seed in (0, 1):
        reward = dataclasses.replace(prepared, max_epochs=2, dropout=0.5)
        reward.clip = prepared.clip
        run = study.run("fit", f"r{next(RUNS)}", {})
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        facts = reward.fit(study, rated, run)
        assert torch.equal(torch.get_rng_state(), before)
        assert facts == {
            "best_epoch": facts["best_epoch"], "epochs": 2, "steps": 6,
            # two embeddings of 24 numbers, 8 and 8 hidden units, one output
            "parameters": (48 + 1) * 8 + (8 + 1) * 8 + (8 + 1),
            "prompt_classification": True, "bf16": False,
            "clip": {"width": 24, "hash": reward.clip.hash},
        }  # fmt: skip
        config = files.read_json(run.weights / "config.json")
        assert config == dataclasses.asdict(reward) | {"clip_hash": reward.clip.hash}
        kept.append(reward.head.state_dict())
        again = dataclasses.replace(reward)
        again.prepare(study, "cpu", run.weights)
        assert all(torch.equal(v, again.head.state_dict()[n]) for n, v in kept[-1].items())
    assert all(torch.equal(kept[0][n], kept[1][n]) for n in kept[0])


def test_the_words_that_alter_prompts(study: Study, tmp_path: Path) -> None:
    assert _grammar(ClipHead(grammar="tinyworld"), study) == load_grammar("tinyworld")
    assert _grammar(ClipHead(), study) == load_grammar("tinyworld")
    other = "lee2023"
    assert _grammar(ClipHead(grammar=other), study) == load_grammar(other)
    assert load_grammar(other) != load_grammar("tinyworld")

    def of_prompts(config: dict[str, str] | None) -> object:
        made = Study.create(tmp_path / f"s{next(RUNS)}", study.info)
        if config is not None:
            made.run("prompts", "", config)
        return _grammar(ClipHead(), made)

    assert of_prompts(None) is None
    assert of_prompts({"set": "", "file": "mine.txt"}) is None
    assert of_prompts({"set": "", "file": ""}) == load_grammar("tinyworld")
    assert of_prompts({"set": other, "file": ""}) == load_grammar(other)
