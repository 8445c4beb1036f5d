"""The OpenAPI document is complete, current, and kept by the running API."""

from pathlib import Path

import openapi_spec_validator
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from service.openapi import describe, render
from service.submission.preferences import MAX_WAIT_SECONDS
from tests.service.conftest import Api

CHECKED_IN = Path(__file__).parents[2] / "openapi" / "openapi.yaml"


def test_the_checked_in_document_is_current() -> None:
    """`make openapi` writes it anew."""
    assert CHECKED_IN.read_text() == render(describe())


def test_the_document_is_valid_and_so_are_its_defaults() -> None:
    """The validator of the OpenAPI project; a default of another type than its field is found."""
    openapi_spec_validator.validate(describe())


def test_every_operation_tells_its_errors_with_examples() -> None:
    document = yaml.safe_load(render(describe()))
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], (path, method)
            assert operation["operationId"], (path, method)
            for status, answer in operation["responses"].items():
                if int(status) < 400 or path == "/healthz/ready":
                    continue
                [content] = answer["content"].values()
                assert content["schema"]["$ref"].endswith("/Problem")
                for example in content["examples"].values():
                    assert example["value"]["status"] == int(status)
    statuses = set(document["paths"]["/generate"]["post"]["responses"])
    assert {"200", "202", "400", "413", "415", "422", "503"} <= statuses


def test_the_running_api_serves_the_same_document(api: Api) -> None:
    served = api.client.get("/openapi.json").json()
    assert served == yaml.safe_load(CHECKED_IN.read_text())


DOCUMENT = yaml.safe_load(CHECKED_IN.read_text())
OPERATIONS = [
    (path, method) for path, operations in DOCUMENT["paths"].items() for method in operations
]


@pytest.mark.usefixtures("warm_worker")
@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=lambda part: part)
def test_answers_keep_to_the_document(api: Api, path: str, method: str) -> None:
    """Schemathesis makes up requests, right and wrong ones, and checks every answer."""
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    operation = schema[path][method]
    modes = schemathesis.GenerationMode

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        operation.as_strategy(generation_mode=modes.POSITIVE)
        | operation.as_strategy(generation_mode=modes.NEGATIVE)
    )
    def check(case: schemathesis.Case) -> None:
        headers = case.headers or {}
        if str(headers.get("Prefer", "")).startswith("wait="):
            headers["Prefer"] = "wait=1"  # nobody works here: every second asked for is waited
        case.call_and_validate(
            base_url=api.running.url,
            timeout=MAX_WAIT_SECONDS + 30,
            # A schema cannot say which bytes are a picture or which names are served.
            excluded_checks=[positive_data_acceptance],
        )

    check()
