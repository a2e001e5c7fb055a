"""The rules of the queue: pure functions, then a random walk of raters over the real store."""

import hashlib
import random
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from rating_studies import BASE, SECRET, Rater, RatingApp, items_of, make_study, set_secret
from scipy.stats import chisquare

from sayso.web.work import queue
from sayso.web.work.queue import LEASE_S, Newest
from sayso.web.work.tasks import TaskOptions

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def test_sides_over_ten_thousand_assignments():
    """Left and right equally often in all, per rater and per item, and each question by itself."""
    raters, pairs = 20, 250
    swapped: dict[tuple[int, int, int], bool] = {}
    balance: Counter[Any] = Counter()
    order = [(r, p, q) for r in range(raters) for p in range(pairs) for q in range(2)]
    queue.generator(5, "walk").shuffle(order)
    for r, p, q in order:
        drawn = queue.generator(5, r, p, q).random()
        swap = queue.swap_sides(balance["rater", r], balance["item", p, q], drawn)
        for key in (("rater", r), ("item", p, q), "all"):
            balance[key] += 1 if swap else -1
        swapped[r, p, q] = swap
    n = len(order)
    assert n == 10_000
    assert chisquare([(n + balance["all"]) / 2, (n - balance["all"]) / 2]).pvalue > 0.01
    # by chance alone the means would be 17.8 of 500 and 3.5 of 20
    assert sum(abs(balance["rater", r]) for r in range(raters)) / raters < 12
    assert sum(abs(balance["item", p, q]) for p in range(pairs) for q in range(2)) / 500 < 2.6
    flipped = sum(swapped[r, p, 0] != swapped[r, p, 1] for r in range(raters) for p in range(pairs))
    assert 0.47 < flipped / (raters * pairs) < 0.53, "a second question tells nothing of the first"


def test_a_rater_cannot_work_out_the_next_side():
    """Whoever knows all sides before guesses no more than three in four right."""
    balance, right = 0, 0
    for i in range(4000):
        swap = queue.swap_sides(balance, 0, queue.generator(3, i).random())
        right += swap == (balance < 0)
        balance += 1 if swap else -1
    assert 0.5 < right / 4000 < 0.78


def test_the_coin_is_fair_when_all_is_even_and_biased_otherwise():
    assert queue.swap_sides(0, 0, 0.49)
    assert not queue.swap_sides(0, 0, 0.51)
    assert [queue.swap_sides(1, 0, drawn) for drawn in (0.24, 0.26)] == [True, False]
    assert [queue.swap_sides(0, -1, drawn) for drawn in (0.74, 0.76)] == [True, False]
    assert [queue.swap_sides(2, -2, drawn) for drawn in (0.49, 0.51)] == [True, False]


@pytest.mark.parametrize(("gold", "attention"), [(0.05, 0.1), (0.0, 0.0), (0.12, 0.03)])
def test_share_of_checks(gold: float, attention: float):
    n = 3000
    kinds = Counter(queue.control_at(i, 3, "ann", gold, attention) for i in range(n))
    assert kinds["gold"] / n == pytest.approx(gold, abs=0.015)
    assert kinds["attention"] / n == pytest.approx(attention, abs=0.015)
    first = {i for i in range(n) if queue.control_at(i, 3, "ann", gold, attention)}
    other = {i for i in range(n) if queue.control_at(i, 3, "bob", gold, attention)}
    assert not first or first != other


def test_orders_can_be_replayed():
    assert queue.shuffled(50, 7, "t") == queue.shuffled(50, 7, "t") != queue.shuffled(50, 8, "t")
    assert sorted(queue.shuffled(50, 7, "t")) == list(range(50))
    starts = {queue.first_rank(1000, 7, f"rater {i}") for i in range(50)}
    assert len(starts) > 45
    assert queue.shuffled(5, 0) == [1, 0, 3, 4, 2]  # as on any other machine


def test_a_tenth_is_shared():
    wanted = Counter(queue.overlap_of(f"page {i}", 1, 3, 5) for i in range(5000))
    assert wanted.keys() == {1, 3}
    assert wanted[3] / 5000 == pytest.approx(0.1, abs=0.015)
    assert {queue.overlap_of(f"page {i}", 2, 0, 5) for i in range(100)} == {2}


@pytest.mark.parametrize(
    ("until", "now", "holds"),
    [
        (100.0, 99.0, True),
        (100.0, 100.0, False),
        (100.0 + LEASE_S, 99.0, False),
        (99.0 + LEASE_S, 99.0, True),
    ],
)
def test_leases_and_clocks_that_jump(until: float, now: float, holds: bool):
    assert queue.is_reserved(until, now) is holds


def test_what_a_vote_replaces():
    live, gone = Newest("a", retracted=False), Newest("b", retracted=True)
    assert queue.superseded(None, False, None) is None
    assert queue.superseded(live, False, "a") == "a"
    assert queue.superseded(live, True, "a") == "a"
    assert queue.superseded(gone, False, None) == queue.superseded(gone, False, "b") == "b"
    for newest, retracts, names in (
        (None, False, "a"), (None, True, None), (live, False, None), (live, True, None),
        (live, False, "b"), (gone, True, "b"), (gone, False, "a"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"\w"):
            queue.superseded(newest, retracts, names)


def drawn(seed: int, *words: object) -> random.Random:
    """What the order of a task rests on: SHA-256 of the seed and the words, a line each."""
    text = "\n".join(map(str, (seed, *words)))
    return random.Random(int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16))


def test_everything_is_drawn_from_the_seed_and_its_own_words():
    """Another version must go on with a task where this one left off."""
    order = list(range(9))
    drawn(7, "order", "t", 3).shuffle(order)
    assert queue.shuffled(9, 7, "t", 3) == order
    for rater in ("ann", "bob", "çem"):
        assert queue.first_rank(1000, 7, rater) == drawn(7, "first", rater).randrange(1000)
    for page in map(str, range(40)):
        shared = drawn(7, "shared", page).random() < 0.1
        assert queue.overlap_of(page, 1, 4, 7) == (4 if shared else 1)
    assert queue.overlap_of("page", 4, 4, 7) == 4
    assert queue.first_rank(0, 7, "ann") == queue.first_rank(1, 7, "ann") == 0


def test_every_block_of_pages_holds_its_share_of_checks():
    for start in range(0, 200, 20):
        block = [queue.control_at(i, 3, "ann", 0.1, 0.15) for i in range(start, start + 20)]
        assert Counter(block) == {"gold": 2, "attention": 3, "": 15}
    uneven = set()
    for start in range(0, 2000, 20):
        block = [queue.control_at(i, 3, "ann", 0.12, 0.0) for i in range(start, start + 20)]
        uneven.add(block.count("gold"))
    assert uneven == {2, 3}, "2.4 a block is rounded up or down by chance"
    assert {queue.control_at(i, 3, "ann", 0.25, 0.75) for i in range(20)} == {"gold", "attention"}


def test_checks_stand_where_the_seed_puts_them():
    for block in range(3):
        rng = drawn(3, "checks", "ann", block)
        gold, attention = int(2.4 + rng.random()), int(1.6 + rng.random())
        kinds = ["gold"] * gold + ["attention"] * attention
        kinds += [""] * (20 - len(kinds))
        rng.shuffle(kinds)
        pages = range(20 * block, 20 * block + 20)
        assert [queue.control_at(i, 3, "ann", 0.12, 0.08) for i in pages] == kinds


@pytest.mark.parametrize(
    ("overlap", "voted", "reserved", "room"),
    [(0, 9, 9, True), (1, 0, 0, True), (1, 1, 0, False), (1, 0, 1, False), (3, 1, 1, True),
     (3, 2, 1, False), (3, 4, 0, False)],
)  # fmt: skip
def test_an_item_has_room_until_its_raters_are_found(
    overlap: int, voted: int, reserved: int, room: bool
):
    assert queue.has_room(overlap, voted, reserved) is room


def test_the_coin_lands_on_its_edge():
    """Drawn from [0, 1): a half, a quarter and three quarters belong to the side not taken."""
    assert not queue.swap_sides(0, 0, 0.5)
    assert not queue.swap_sides(1, 0, 0.25)
    assert not queue.swap_sides(-1, 0, 0.75)
    assert queue.swap_sides(-1, -1, 0.74)
    assert not queue.swap_sides(-1, 2, 0.26)


def test_swapped_votes():
    swapped = {v: queue.opposite(v) for v in ("left", "right", "tie", "both_good", "skip")}
    assert swapped.pop("left") == "right"
    assert swapped.pop("right") == "left"
    assert all(v == w for v, w in swapped.items())


@pytest.mark.parametrize(
    ("numbers", "mine_total", "project_total"),
    [
        # 60 votes wanted and a quarter checks: 80 pages in all; 20 items: 27 pages for one rater
        ((3, 10, 20, 60, 0.25), 27, 80),
        ((3, 75, 20, 60, 0.25), 8, 80),  # others have left 5
        ((3, 90, 20, 60, 0.25), 3, 90),  # more checks than expected
        ((30, 40, 20, 60, 0.25), 30, 80),  # more of one's own than expected
        ((5, 10, 20, 60, 0.0), 20, 60),
    ],
)
def test_what_raters_are_told(numbers, mine_total: int, project_total: int):
    mine, n_votes, *_ = numbers
    assert queue.told(*numbers) == queue.Told(mine, mine_total, n_votes, project_total)


def test_what_raters_are_told_at_the_end():
    so_far = queue.Told(5, 9, 40, 80)
    assert queue.told_at_the_end(so_far, complete=True) == queue.Told(5, 5, 40, 40)
    assert queue.told_at_the_end(so_far, complete=False) == queue.Told(5, 5, 40, 80)


def test_two_servers_make_the_same_order(tmp_path: Path):
    """Same seed and secret, same raters, same n_votes: the same pages in the same order."""
    seen = []
    for folder, secret in (("one", SECRET), ("two", SECRET), ("three", "b7" * 32)):
        (tmp_path / folder).mkdir()
        options = TaskOptions(attention_share=0.15, overlap=2, seed=11)
        study = make_study(tmp_path / folder, 8, 3)
        set_secret(study, secret)
        app = RatingApp(study, options, names=("ann", "bob"))
        for name in app.names:
            app.client(name).work()
        seen.append(app.table("select rater, sample_id, attention from ratings order by seq"))
    assert seen[0] == seen[1] != seen[2], "who knows the options alone cannot replay the order"


class Walk(RuleBasedStateMachine):
    """Raters join, lease, vote, change, take back, leave and let leases expire, in any order."""

    names = ("ann", "bob", "cem", "dan")

    @initialize(overlap=st.sampled_from([1, 2, 3]))
    def begin(self, overlap: int) -> None:
        self.folder = TemporaryDirectory(dir=MEMORY)
        study = make_study(Path(self.folder.name), 4, 2)
        gold = {s.id: "bad" for s in study.samples(BASE)[:1]}
        options = TaskOptions(
            overlap=overlap, gold=gold, gold_share=0.1, attention_share=0.2, seed=1
        )
        self.app, self.overlap = RatingApp(study, options, names=self.names), overlap
        self.clock_was_wrong = False
        self.raters: dict[str, Rater] = {}
        self.held: dict[str, dict[str, dict[str, Any]]] = {}
        self.live: dict[tuple[str, str], str] = {}
        self.sent: list[tuple[str, dict[str, Any]]] = []

    @rule(name=st.sampled_from(names), n=st.integers(1, 4))
    def lease(self, name: str, n: int) -> None:
        if name not in self.raters:
            self.raters[name], self.held[name] = self.app.client(name), {}
        have = tuple(self.held[name])
        for page in self.raters[name].pages(n, have):
            assert page["page_id"] not in have
            self.held[name][page["page_id"]] = page

    def pick(self, name: str, k: int) -> tuple[str, str] | None:
        held = self.held.get(name) or {}
        if not held:
            return None
        page = list(held)[k % len(held)]
        return page, items_of(held[page])[0]

    @rule(name=st.sampled_from(names), k=st.integers(0, 9), value=st.sampled_from(["good", "bad"]))
    def vote(self, name: str, k: int, value: str) -> None:
        chosen = self.pick(name, k)
        if chosen is None:
            return
        page, item = chosen
        old = self.live.get((name, item))
        body = self.raters[name].body(item, value, supersedes=old)
        response = self.raters[name].post("/api/votes", body)
        assert response.status_code == 200, response.text
        self.live[name, item] = body["id"]
        self.sent.append((name, body))
        if k % 2:
            del self.held[name][page]

    @rule(name=st.sampled_from(names), k=st.integers(0, 9))
    def undo(self, name: str, k: int) -> None:
        mine = [key for key in self.live if key[0] == name]
        if not mine:
            return
        key = mine[k % len(mine)]
        body = self.raters[name].body(key[1], "retracted", supersedes=self.live.pop(key))
        response = self.raters[name].post("/api/votes", body)
        assert response.status_code == 200, response.text
        self.sent.append((name, body))

    @rule(k=st.integers(0, 99))
    def send_again(self, k: int) -> None:
        if self.sent:
            name, body = self.sent[k % len(self.sent)]
            stored = self.app.table("select count(*), sum(surplus) from ratings")
            again = self.raters[name].post("/api/votes", body)
            assert (again.status_code, again.json()["id"]) == (200, body["id"])
            assert self.app.table("select count(*), sum(surplus) from ratings") == stored

    @rule(name=st.sampled_from(names))
    def leave(self, name: str) -> None:
        if self.held.get(name):
            self.raters[name].post("/api/release", {"page_ids": list(self.held[name])})
            self.held[name] = {}

    @rule(seconds=st.sampled_from([60.0, LEASE_S + 1, -5.0, -3600.0, 86400.0]))
    def time_passes(self, seconds: float) -> None:
        self.app.clock.now += seconds
        self.clock_was_wrong |= seconds < 0

    @invariant()
    def promises_hold(self) -> None:
        if not hasattr(self, "app"):
            return
        raters = "select id, rater, item_id, surplus from ratings a where value <> 'retracted' "
        live = self.app.table(
            raters + "and not exists (select 1 from ratings b where b.supersedes = a.id)"
        )
        assert {row[0] for row in live} == set(self.live.values())
        counted = Counter(row[2] for row in live if not row[3])
        items = self.app.table("select id, control, overlap, votes, open from items")
        now = self.app.clock.now
        reserved = Counter(
            row[0]
            for row in self.app.table("select item, until from assignments where state='leased'")
            if now < row[1] <= now + LEASE_S
        )
        for item, control, overlap, votes, is_open in items:
            assert counted[item] == votes
            assert overlap == (0 if control else self.overlap)
            # two may hold a lease after a clock was wrong; both may not count
            held = 0 if self.clock_was_wrong else reserved[item]
            assert control or votes + held <= overlap
            assert bool(is_open) == (overlap == 0 or votes < overlap)
        done = sum(row[3] for row in items if not row[1])
        assert self.app.table("select votes, answers from tasks") == [(done, len(live))]
        own = Counter(row[1] for row in live)
        places = "select name, answers from participants join raters on raters.id = rater"
        assert all(own[name] == n_votes for name, n_votes in self.app.table(places))

    def teardown(self) -> None:
        if hasattr(self, "app"):
            self.app.site.database.close()
            self.folder.cleanup()


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
