"""Stage `rate`: ratings and comparisons, by people in the rating app or by programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sayso.base.errors import UserError, check_seed
from sayso.base.worlds import default_world, find_world
from sayso.study.generations import say
from sayso.study.identity import canonical_config
from sayso.study.info import PromptChoice
from sayso.study.study import Study

if TYPE_CHECKING:
    from sayso.web.work.tasks import TaskOptions


@dataclass(frozen=True)
class RateConfig:
    """What to rate, and who rates. Without --simulated, opens the rating app for people."""

    simulated: bool = False
    """Use simulated raters, which read the images of a world. Their votes are kept apart from
    people's."""
    through_app: bool = False
    """Simulated raters: use the rating app over HTTP, each signed in, with leases and hidden
    checks, instead of writing to the store. Options of pages, gold, checks and --db apply as for
    people."""
    task: Literal["rate", "compare"] = "rate"
    """rate: rate images good, bad or skip; compare: compare two sets of images of a prompt."""
    prompts: PromptChoice | None = None
    """Which prompts to use; default: train for rating, test (seen and unseen) for comparing."""
    model: str = "base"
    """Rating: the model whose images are rated."""
    per_prompt: int = 0
    """Rating: images per prompt; 0 = all."""
    left: str = "base"
    """Comparing: one model. Which model is on the left is random for each vote, and stored."""
    right: str = ""
    """Comparing: the other model, such as runs/align-rwr."""
    set_size: int = 4
    """Comparing: images of each model in a set; the paper shows 4."""
    split_tie: bool = False
    """People, comparing: offer "both good" and "both bad" instead of one tie; both still count as
    ties."""
    raters: int = 1
    """Number of simulated raters; the paper has 2 for rating and 9 for comparing."""
    careless: int = 0
    """How many of the simulated raters press keys without looking (the last ones)."""
    overlap: int = 1
    """How many raters vote on the same image or pair of sets; 1 and 9 in the paper."""
    seed: int = 0
    """Seed for who votes on what in which order, and for the simulated raters' characters."""
    images_per_page: int = 1
    """People, rating: images of one prompt per page, 1 to 4; the paper shows 3."""
    shared_overlap: int = 0
    """People, rating: overlap for a random tenth of the pages, to measure agreement; 0 = off."""
    gold: str = ""
    """People, rating: JSON lines file with sample_id and the known value, shown to everyone."""
    gold_share: float = 0.05
    """People: share of gold pages, whose right vote is known, hidden among the others."""
    attention_share: float | None = None
    """People: share of hidden attention checks; default: 0.1, or 0 without sign-in."""
    db: str = ""
    """People: database, such as postgresql+psycopg://USER@HOST/NAME; remembered by the study."""
    workers: int = 1
    """People: server processes; more than one needs PostgreSQL."""
    host: str = "127.0.0.1"
    """People: address to listen on; addresses that other machines can reach need raters who sign
    in."""
    port: int = 8321
    """People: port to listen on."""
    root_path: str = ""
    """People: path under which a proxy serves the app, such as /sayso, if the proxy does not strip
    it."""
    browser: bool = True
    """People: open the page in the browser if nobody has to sign in."""


def rate(study: Study, config: RateConfig) -> int:
    """Collect the votes that are missing: from programs at once, from people until stopped.

    Returns: how many votes programs added; 0 after people.
    Raises: UserError: for options that do not fit; if there are no such images; if the server
        cannot start; for programs, if an image is gone or damaged, or a prompt is not of their
        world (nothing is stored then).
    """
    config = canonical_config(study, config)
    _check(config)
    from sayso.web.serving import Listening, prepare, refuse_taken, serve

    listening = Listening(config.host, config.port, config.workers, config.browser)
    if not config.simulated:
        # before anything is said: a start that fails warns of nothing else
        refuse_taken(listening)
    say(study, _models(config))
    if config.through_app:
        return _programs(study).collect_through_app(study, config, _task(config))
    if config.simulated:
        return _programs(study).collect(study, config)
    site = prepare(study, config.db, _task(config), config.root_path)
    serve(site, listening)
    return 0


def plan(study: Study, config: RateConfig) -> dict[str, object]:
    """How many votes there will be in all."""
    config = canonical_config(study, config)
    _check(config)
    if config.simulated and not config.through_app:
        return {"votes": _programs(study).count(study, config)}
    from sayso.web.work.checks import draft_with_checks

    pages = draft_with_checks(study, _task(config), config.seed)
    items = [item for page in pages for item in page]
    ordinary = [item for item in items if not item.control]
    proposed = sum(bool(item.standing) for item in items)
    return {
        "items": len(ordinary),
        "votes": sum(item.overlap for item in ordinary),
        "checks": len(items) - len(ordinary) - proposed,
        "proposed_checks": proposed,
    }


def _programs(study: Study) -> Any:
    """The simulated raters of the study's world, or of the default one."""
    return (find_world(study.info.base_model) or default_world()).raters()


def _models(config: RateConfig) -> tuple[str, ...]:
    return (config.model,) if config.task == "rate" else (config.left, config.right)


def _task(config: RateConfig) -> "TaskOptions":
    from sayso.web.work.tasks import TaskOptions, read_gold

    names = ("model", "per_prompt", "images_per_page", "left", "right", "set_size", "overlap",
             "shared_overlap", "gold_share", "attention_share", "seed", "simulated",
             "split_tie")  # fmt: skip
    return TaskOptions(
        kind=config.task,
        prompts=config.prompts or ("train" if config.task == "rate" else "test"),
        gold=read_gold(Path(config.gold)) if config.gold else {},
        **{name: getattr(config, name) for name in names},
    )


def _check(config: RateConfig) -> None:
    check_seed(config.seed)
    most = config.raters if config.simulated else config.overlap
    if config.raters < 1 or not 1 <= config.overlap <= most:
        raise UserError(
            f"overlap {config.overlap} with {config.raters} raters is not allowed; give at least "
            "1 rater and an overlap from 1 to the number of raters"
        )
    if not 0 <= config.careless <= config.raters:
        raise UserError(
            f"careless {config.careless} of {config.raters} raters is not allowed; give 0 to "
            f"{config.raters}"
        )
    if config.through_app and not config.simulated:
        raise UserError("--through-app is for simulated raters; add --simulated, or omit it")
    if config.per_prompt < 0 or config.set_size < 1:
        raise UserError(
            f"per_prompt {config.per_prompt} and set_size {config.set_size} are not allowed; give "
            "per_prompt 0 (all) or more and set_size 1 or more"
        )
    if config.task == "compare" and not config.right:
        raise UserError("--task compare needs two models; give the other one with --right")
    if config.task == "compare" and config.left == config.right:
        raise UserError(f"--left and --right are both {config.left!r}; give two models")
    if config.split_tie and (config.task != "compare" or config.simulated):
        raise UserError("--split-tie is for comparisons by people; add --task compare, or omit it")
    _check_people(config)


def _check_people(config: RateConfig) -> None:
    if config.shared_overlap < 0:
        raise UserError(f"shared_overlap {config.shared_overlap} is not allowed; give 0 or more")
    if not 1 <= config.images_per_page <= 4:
        raise UserError(f"images_per_page {config.images_per_page} is not allowed; give 1 to 4")
    shares = (config.gold_share, config.attention_share or 0.0)
    if min(shares) < 0 or sum(shares) > 0.5:
        raise UserError(
            f"gold_share {shares[0]} and attention_share {shares[1]} are not allowed; give shares "
            "from 0 that make at most 0.5 together"
        )
    if not 1 <= config.port <= 65535:
        raise UserError(f"port {config.port} is not allowed; give 1 to 65535")
    if config.gold and config.task == "compare":
        raise UserError("--gold holds votes on single images; omit it when comparing")
