"""The bodies of the API: what pages send and get. FastAPI makes the OpenAPI of them."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sayso.base.types import Choice, Question, Value

Id = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.:-]+$")]
Ids = Annotated[list[Id], Field(max_length=100)]
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""PostgreSQL stores every character but NUL."""
_MOST_MS = 1e14
Milliseconds = Annotated[float, Field(ge=0, le=_MOST_MS, allow_inf_nan=False)]


def _whole(value: object) -> object:
    """JSON knows one kind of number: 3.0 is whole too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorBody(BaseModel):
    """Why not: a code for the page, a sentence for the person, whether trying again may help."""

    code: str
    message: str
    retry: bool = False


class ErrorReply(BaseModel):
    error: ErrorBody


class RaterBody(BaseModel):
    name: str
    role: str


class StudyBody(BaseModel):
    """`id` is random; the browser keeps its outbox under it."""

    id: str
    name: str


class TaskBody(BaseModel):
    id: str
    kind: Literal["rate", "compare"]
    questions: list[str]
    values: list[str]
    images_per_page: int
    guideline_version: int
    guideline_html: str
    guideline_accepted: bool
    paused: bool
    closed: bool


class Progress(BaseModel):
    """Votes: mine so far and about how many in the end, and the same of everyone.

    Hidden checks are among all four; the totals are expected ones until the end.
    """

    mine: int
    mine_total: int
    project: int
    project_total: int


class SessionBody(BaseModel):
    rater: RaterBody
    csrf: str
    local: bool
    study: StudyBody
    task: TaskBody | None
    progress: Progress | None
    overlap: int | None
    app_version: str


class AcceptBody(_Body):
    version: Whole = Field(ge=0, le=1_000_000)


class Accepted(BaseModel):
    version: int
    accepted: bool = True


class NextBody(_Body):
    """`have`: pages that the browser shows, or whose votes it has not got through yet."""

    have: Ids = []
    n: Whole = Field(default=5, ge=1, le=10)


class ImageBody(BaseModel):
    """Size in pixels."""

    url: str
    width: int
    height: int


class RateItem(BaseModel):
    item_id: str
    image: ImageBody
    supersedes: str | None = None


class RatePage(BaseModel):
    page_id: str
    kind: Literal["rate"]
    prompt: str
    question: str
    items: list[RateItem]
    lease_until: float


class ComparePage(BaseModel):
    page_id: str
    kind: Literal["compare"]
    prompt: str
    question: str
    item_id: str
    left: list[ImageBody]
    right: list[ImageBody]
    supersedes: str | None = None
    lease_until: float


class NextReply(BaseModel):
    """`lease_until` of pages is in milliseconds since the epoch, by the server's clock."""

    pages: list[RatePage | ComparePage]
    done: bool
    progress: Progress


class VoteBody(_Body):
    """One vote. The page makes the id, so that sending again is harmless.

    `value` "retracted" takes the vote `supersedes` back.
    """

    id: Id
    item_id: Id
    question: Question
    value: Value | Choice | Literal["retracted"]
    reason: Annotated[Text, Field(max_length=200)] = ""
    shown_at: Milliseconds
    answered_at: Milliseconds
    latency_ms: Milliseconds
    hidden_ms: Milliseconds = 0.0
    position: Whole = Field(default=0, ge=0, le=1_000_000_000)
    guideline_version: Whole = Field(default=0, ge=0, le=1_000_000)
    supersedes: Id | None = None


class VoteReply(BaseModel):
    """The vote is on disk. Whether it counts is not told: checks always do."""

    id: str
    stored: Literal[True] = True
    progress: Progress


class ReleaseBody(_Body):
    """`broken`: an image could not be shown; the pages never come back to this rater."""

    page_ids: Ids
    broken: bool = False
    message: Annotated[Text, Field(max_length=500)] = ""


class Released(BaseModel):
    items: int
