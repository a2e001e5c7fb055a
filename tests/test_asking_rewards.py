"""Rewards that ask: a vision-language model, and a server over HTTP."""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from models import edit, spoiled
from own_vlm import PATCH, SIDE, tiny_vlm
from PIL import Image
from reward_server import RewardServer, brightness
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaForConditionalGeneration

from sayso.base.errors import UserError
from sayso.cli import commands as cli
from sayso.data.clip import stacked
from sayso.rewards import load_reward
from sayso.rewards.remote import Remote, in_ascii
from sayso.rewards.vlm_yes import probability_of_yes
from sayso.study.identity import reward_identity
from sayso.study.info import StudyInfo
from sayso.study.study import Study

TEXTS = ["a dog", "two cats", "the {} sea"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """An empty study; tests add rewards under names of their own."""
    return Study.create(tmp_path_factory.mktemp("asking") / "study", StudyInfo("s"))


@pytest.fixture
def server() -> Iterator[RewardServer]:
    server = RewardServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in TEXTS]


def add(study: Study, reward: str, name: str, *flags: object) -> str:
    own = ["--reward", reward, "--name", name, *map(str, flags)]
    cli.run(["reward", str(study.path), *own])
    return f"runs/reward-{name}"


# a vision-language model


def test_probability_of_yes_by_hand() -> None:
    # of tokens a, Yes, No, yes with odds 1, 2, 3, 4
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).log()
    assert probability_of_yes(logits, [1, 3], [2], "no").item() == pytest.approx(6 / 9)
    assert probability_of_yes(logits, [1, 3], [2], "all").item() == pytest.approx(6 / 10)
    far = probability_of_yes(torch.tensor([[-200.0, 200.0]]), [0], [1], "no")
    assert far.isfinite().all()


@pytest.mark.parametrize("against", ["no", "all"])
def test_vlm_yes_is_the_models_own_word(
    study: Study, pictures: list[Image.Image], tmp_path: Path, against: str
) -> None:
    """The tokens written by hand, the model called with them, and a softmax of the last row."""
    folder = tiny_vlm(tmp_path / "vlm", seed=1)
    asked = ("--question", "is this {}?", "--against", against)
    run = add(study, "vlm_yes", f"vlm-{against}", "--weights", folder, *asked)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    pixels = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)
    expected = []
    for image, text in zip(pictures, TEXTS, strict=True):
        words = "<image>" * (SIDE // PATCH) ** 2 + f"is this {text}? so "
        tokens = tokenizer(words, return_tensors="pt", add_special_tokens=False).input_ids
        seen = pixels(images=image, return_tensors="pt").pixel_values
        with torch.no_grad():
            odds = model(input_ids=tokens, pixel_values=seen).logits[0, -1].softmax(0)
        ids = tokenizer.convert_tokens_to_ids
        yes, no = (odds[ids(word)] + odds[ids(word.lower())] for word in ("Yes", "No"))
        expected.append(yes / (yes + no) if against == "no" else yes)
    images = next(stacked(pictures))
    found = load_reward(study, run).score(images, TEXTS)
    assert found.std() > 1e-3
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-4)
    assert study.find_run(run).result["licence"] == "bsd-3-clause"


def test_another_chat_template_is_another_reward(study: Study, tmp_path: Path) -> None:
    folder = tiny_vlm(tmp_path / "vlm", seed=1)
    run = add(study, "vlm_yes", "template", "--weights", folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace(" so ", " then "))
    with pytest.raises(UserError, match=r"inputs of runs/reward-template have changed"):
        add(study, "vlm_yes", "template", "--weights", folder)
    first, kept = reward_identity(study, run), study.find_run(run).weights
    (kept / "README.md").write_text("A note.")
    assert reward_identity(study, run) == first
    (kept / template.name).write_text(template.read_text())
    assert reward_identity(study, run) != first


def test_a_model_that_cannot_be_asked_is_refused(study: Study, tmp_path: Path) -> None:
    def refused(match: str, *flags: object) -> None:
        with pytest.raises(UserError, match=match):
            add(study, "vlm_yes", "refused", *flags)
        assert study.begun("reward", "refused") is None

    refused("has no default weights; give --weights")
    refused(r"question 'is it so\?' has no {}", "--weights", tmp_path, "--question", "is it so?")
    refused(
        "cannot be loaded .* give the folder of a model that reads images", "--weights", tmp_path
    )
    folder = tiny_vlm(tmp_path / "vlm")
    template = folder / "chat_template.jinja"
    kept = template.read_text()
    template.unlink()
    refused("has no chat template", "--weights", folder)
    template.write_text(kept)
    tokens = (folder / "tokenizer.json").read_text()
    for word in ("Yes", "yes"):
        tokens = tokens.replace(f'"{word}"', f'"{word}{word}"')
    (folder / "tokenizer.json").write_text(tokens)
    refused("no single token for 'yes'", "--weights", folder)
    (head,) = (k for k in load_file(folder / "model.safetensors") if k.endswith("lm_head.weight"))
    edit(folder / "model.safetensors", spoiled(head, float("nan")))
    (folder / "tokenizer.json").write_text(tokens.replace("YesYes", "Yes"))
    refused("NaN or infinite .*lm_head", "--weights", folder)


# a server


def test_remote_is_what_the_server_responds(
    study: Study, server: RewardServer, pictures: list[Image.Image]
) -> None:
    reward = load_reward(study, add(study, "remote", "works", "--url", server.url))
    scores = reward.score(next(stacked(pictures)), TEXTS)
    expected = [brightness(image, text) for image, text in zip(pictures, TEXTS, strict=True)]
    assert scores.tolist() == pytest.approx(expected)
    server.content = "3.5"
    server.model = ""
    bare = load_reward(study, add(study, "remote", "bare", "--url", server.url))
    assert bare.score(next(stacked(pictures))[:1], TEXTS[:1]).tolist() == [3.5]


def test_another_model_behind_the_same_address_is_refused(
    study: Study, server: RewardServer, pictures: list[Image.Image]
) -> None:
    run = add(study, "remote", "first", "--url", server.url)
    server.model = "bright-2"
    with pytest.raises(UserError, match=r"scores with model 'bright-2', but .* with 'bright-1'"):
        load_reward(study, run).score(next(stacked(pictures)), TEXTS)
    again = add(study, "remote", "second", "--url", server.url)
    assert reward_identity(study, run) != reward_identity(study, again)
    server.content = "7"
    with pytest.raises(UserError, match="scores with model ''"):
        load_reward(study, again).score(next(stacked(pictures)), TEXTS)


@pytest.mark.parametrize(
    "content",
    ["", "<html>busy</html>", "NaN", "Infinity", "null", "true", '"3"', "[1]", '{"score": null}',
     '{"reward": 1}', '{"score": -Infinity}', '{"score": 1, "model": 2}', "1 2", "\ufffd",
     "1" + "0" * 400, "-1" + "0" * 5000, "1e39", "[" * 100_000,
     '{"score": 1, "model": "\\ud800"}'],
)  # fmt: skip
def test_what_is_no_number_ends_the_command(
    study: Study, server: RewardServer, content: str, pictures: list[Image.Image]
) -> None:
    reward = Remote(url=server.url)
    reward._model = "bright-1"
    server.content = content or " "
    with pytest.raises(UserError, match=r"responded .*, which is not a number, or {\"score\""):
        reward.score(next(stacked(pictures)), TEXTS)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/zwei Äpfel/göd?q=ü", "/zwei%20%C3%84pfel/g%C3%B6d?q=%C3%BC"),
        ("/a%20b?x=1&y=%C3%BC", "/a%20b?x=1&y=%C3%BC"),
        ("?q=1", "/?q=1"),
        ("/score#here", "/score"),
        ("/a//b", "/a//b"),
    ],
)
def test_any_letters_may_be_in_the_address(server: RewardServer, path: str, asked: str) -> None:
    reward = Remote(url=server.url.removesuffix("/score") + path)
    reward._model = "bright-1"
    assert reward.score(torch.zeros(1, 3, 8, 8), [""]).tolist() == [0]
    assert server.path == asked
    assert in_ascii("http://bücher.example:80/") == "http://xn--bcher-kva.example:80/"
    assert in_ascii("http://localhost//a") == "http://localhost//a"
    assert in_ascii("https://[::1]:8000/score") == "https://[::1]:8000/score"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://[::1/score", "Invalid IPv6 URL"),
        ("http://[x]/", "does not appear to be an IPv4 or IPv6 address"),
        ("http://", "it has no host"),
        ("http:///score", "it has no host"),
        ("http://127.0.0.1:99999/", "Port out of range"),
        ("http://127.0.0.1:score/", "Port could not be cast"),
        ("http://a..b/", "label empty or too long"),
        (f"http://{'a' * 64}.com/", "label (empty or )?too long"),
        ("http://me:secret@127.0.0.1/", "it holds a user name"),
        ("http://127.0.0.1/\udcff", "can't encode"),
    ],
)
def test_a_malformed_address_is_refused(url: str, says: str) -> None:
    with pytest.raises(UserError, match=rf"url '.*' is not an address \(.*{says}.*; give one such"):
        Remote(url=url)


def test_a_redirection_to_nowhere_ends_the_command(server: RewardServer) -> None:
    server.status, server.location = 302, "http://[::1/score"
    with pytest.raises(UserError, match="cannot be reached"):
        Remote(url=server.url).score(torch.zeros(1, 3, 8, 8), [""])


def test_a_server_that_fails_ends_the_command_in_one_line(
    study: Study, server: RewardServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*flags: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(
                ["reward", str(study.path), "--reward", "remote", "--name", "no", *map(str, flags)]
            )
        assert stop.value.code == 2
        assert study.begun("reward", "no") is None
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        return said

    assert "needs the address of its server: give --url" in refused()
    assert "does not begin with http:// or https://" in refused("--url", "file:///etc/passwd")
    assert "timeout_s 0.0 is not allowed" in refused("--url", server.url, "--timeout-s", 0)
    assert "timeout_s 1e+300 is not" in refused("--url", server.url, "--timeout-s", 1e300)
    assert "parallel 0 is not from 1" in refused("--url", server.url, "--parallel", 0)
    server.status = 500
    assert f"{server.url} responded 500 Internal Server Error" in refused("--url", server.url)
    server.status, server.wait_s = 200, 0.5
    slow = refused("--url", server.url, "--timeout-s", 0.1)
    assert "did not respond within 0.1 s" in slow
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
    assert re.search("cannot be reached .*; start the server", refused("--url", dead))


def test_a_broken_response_is_no_score(study: Study) -> None:
    """A server that hangs up, and one that speaks no HTTP."""
    for content in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n3", b"hello\r\n"):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            reward = Remote(url=f"http://127.0.0.1:{listening.getsockname()[1]}/", timeout_s=5.0)

            def reply(content: bytes = content, listening: socket.socket = listening) -> None:
                talking, _ = listening.accept()
                with talking:
                    talking.recv(1 << 16)
                    talking.sendall(content)

            with ThreadPoolExecutor(1) as threads:
                threads.submit(reply)
                with pytest.raises(UserError, match="cannot be reached"):
                    reward.score(torch.zeros(1, 3, 8, 8), ["a"])


def test_a_remote_reward_needs_to_be_added(study: Study) -> None:
    with pytest.raises(UserError, match="must be added to the study first"):
        load_reward(study, "remote")
