"""The API does what its OpenAPI says, whatever is sent."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rating_studies import ADDRESS, RatingApp, items_of, make_study
from schemathesis import GenerationMode

from sayso.web.work.tasks import TaskOptions

CALLS = {
    ("GET", "/api/session"), ("POST", "/api/guideline/accept"), ("POST", "/api/next"),
    ("POST", "/api/votes"), ("POST", "/api/release"),
}  # fmt: skip
LEFT_OUT = [schemathesis.checks.ignored_auth, schemathesis.checks.missing_required_header]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> RatingApp:
    options = TaskOptions(attention_share=0.1, overlap=3)
    return RatingApp(make_study(tmp_path_factory.mktemp("api")), options)


@pytest.mark.parametrize(("method", "path"), sorted(CALLS))
def test_every_call_as_described(app: RatingApp, method: str, path: str):
    """Whatever fits the description, or nearly, gets a response that fits it too."""
    described = schemathesis.openapi.from_asgi("/openapi.json", app.asgi)
    ann = app.client()
    item = items_of(ann.pages()[0])[0]
    responded: set[int] = set()

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=strategy(described[path][method]), known=st.booleans())
    def call(case: schemathesis.Case, known: bool) -> None:
        case.headers = {**(case.headers or {}), "X-CSRF-Token": ann.token}
        case.cookies = dict(ann.http.cookies)
        is_right = case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE
        if known and is_right and path == "/api/votes":
            case.body |= {"item_id": item, "question": "alignment", "value": "good"}
            case.body["supersedes"] = None
        # whether a response fits the question is not in the description
        fits = [schemathesis.checks.positive_data_acceptance] if path == "/api/votes" else []
        response = case.call_and_validate(excluded_checks=[*LEFT_OUT, *fits], base_url=ADDRESS)
        responded.add(response.status_code)

    call()
    assert 200 in responded or path == "/api/guideline/accept"


def strategy(operation: schemathesis.APIOperation) -> st.SearchStrategy[schemathesis.Case]:
    right, wrong = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
    if operation.method.upper() == "GET":
        return operation.as_strategy(generation_mode=right)
    return st.one_of(operation.as_strategy(generation_mode=mode) for mode in (right, wrong))


def test_the_description_has_every_call(app: RatingApp):
    paths = app.asgi.openapi()["paths"]
    assert {(m.upper(), path) for path, calls in paths.items() for m in calls} == CALLS
    votes = paths["/api/votes"]["post"]
    assert {"200", "401", "403", "404", "409", "410", "422", "503"} <= votes["responses"].keys()
    assert "same id and body" in votes["description"]
