"""`Prefer` and `Accept` are read as their RFCs say; what cannot be read is ignored."""

import pytest

from service.core.param_types import OutputFormat
from service.submission.preferences import Preferences, read_accept, read_prefer

PNG, JPEG, WEBP = OutputFormat.PNG, OutputFormat.JPEG, OutputFormat.WEBP


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], Preferences()),
        (["wait=10"], Preferences(10)),
        (["respond-async"], Preferences(None, respond_async=True)),
        (["respond-async, wait=5"], Preferences(5, respond_async=True)),
        (["respond-async", "wait=5"], Preferences(5, respond_async=True)),
        (['Wait="7"'], Preferences(7)),
        (["wait = 7 ; x=1, other"], Preferences(7)),
        (["wait=5, wait=9"], Preferences(5)),
        (["wait=600"], Preferences(60)),
        (["wait=0"], Preferences(0)),
        (["wait=-1"], Preferences()),
        (["wait=soon"], Preferences()),
        (["wait"], Preferences(60)),
        (["wait="], Preferences(60)),
        (["respond-async, wait"], Preferences(60, respond_async=True)),
        ([",,;=,"], Preferences()),
        (["return=minimal"], Preferences()),
        (['foo; wait="1", wait="2" , wait=3'], Preferences(2)),
        (["x," + " " * 1_000_000 + ",wait=4"], Preferences(4)),
    ],
)
def test_prefer(values: list[str], expected: Preferences) -> None:
    assert read_prefer(values) == expected


@pytest.mark.parametrize(
    ("accept", "asked", "expected"),
    [
        ("", None, None),
        ("*/*", None, None),
        ("application/json", None, None),
        ("image/png", None, PNG),
        ("image/webp", None, WEBP),
        ("image/*", None, PNG),
        ("image/*", WEBP, WEBP),
        ("image/png", WEBP, None),
        ("image/jpeg;q=0.5, image/webp;q=0.9", None, WEBP),
        ("image/png;q=0.5, application/json", None, None),
        ("image/png, application/json;q=0.5", None, PNG),
        ("image/png;q=0", None, None),
        ("image/*;q=0.8, image/png;q=0.1, application/json;q=0.5", PNG, None),
        ("text/html, image/avif, image/webp, image/png, */*;q=0.8", None, PNG),
        ("image/png;q=nonsense", None, None),
        ("IMAGE/PNG", None, PNG),
    ],
)
def test_accept(accept: str, asked: OutputFormat | None, expected: OutputFormat | None) -> None:
    assert read_accept(accept).picture_format(asked) is expected
