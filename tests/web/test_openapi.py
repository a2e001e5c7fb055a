"""The API does what its OpenAPI says, whatever is sent."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from rating_studies import Office, items_of, make_study

from sayso.web.tasks import TaskOptions

schema = schemathesis.pytest.from_fixture("described")


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    options = TaskOptions(attention_share=0.1, overlap=3)
    return Office(make_study(tmp_path_factory.mktemp("api")), options)


@pytest.fixture(scope="module")
def described(office: Office) -> object:
    return schemathesis.openapi.from_asgi("/openapi.json", office.app)


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_call_as_described(case: schemathesis.Case, office: Office):
    ann = office.client()
    case.headers = {**(case.headers or {}), "X-CSRF-Token": ann.token, "Host": "127.0.0.1:8321"}
    case.cookies = dict(ann.http.cookies)
    if isinstance(case.body, dict) and "item_id" in case.body and len(str(case.body)) % 2:
        case.body["item_id"] = items_of(ann.pages()[0])[0]
    case.call_and_validate(
        excluded_checks=[
            schemathesis.checks.ignored_auth, schemathesis.checks.unsupported_method,
        ]
    )  # fmt: skip


def test_the_description_has_every_call(office: Office):
    paths = office.app.openapi()["paths"]
    assert set(paths) == {
        "/api/session", "/api/guideline/accept", "/api/next", "/api/votes", "/api/release",
    }  # fmt: skip
    votes = paths["/api/votes"]["post"]
    assert {"200", "401", "403", "404", "409", "410", "422", "503"} <= votes["responses"].keys()
    assert "same id and body" in votes["description"]
