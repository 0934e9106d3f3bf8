"""Addresses that webhooks must not reach are refused when they are sent."""

import base64

import pytest
from pydantic import SecretStr

from tests.integration.serving import upload

OPEN = {
    "webhook_secret": SecretStr("whsec_" + base64.b64encode(b"k" * 32).decode()),
    "webhook_allow_http": True,
    "webhook_allow_private": True,
}


@pytest.mark.parametrize(
    ("settings", "url", "words"),
    [
        ({}, "https://example.org/", "no secret"),
        (OPEN, "ftp://example.org/", "begin with https:// or http://"),
        (OPEN | {"webhook_allow_http": False}, "http://127.0.0.1:8080/", "begin with https://"),
        (OPEN | {"webhook_allow_private": False}, "https://127.0.0.1/", "no address that this server"),
        (OPEN | {"webhook_allow_private": False}, "https://localhost:6379/", "no address that this server"),
        (OPEN, "https://169.254.169.254/latest", "no address that this server"),
        (OPEN, "https://no-such-name.invalid/", "no address that this server"),
        (OPEN, "https://me:secret@example.org/", "name or password"),
        (OPEN, "https://2130706433/", "plain IP"),
    ],
)
def test_an_address_that_webhooks_must_not_reach_is_refused_when_it_is_sent(serve, settings, url, words):
    service = serve(**settings)
    answer = upload(service.http, webhook_url=url)
    problem = answer.json()
    assert (answer.status_code, problem["type"], problem["field"]) == (
        422,
        "urn:m3esr:problem:invalid-option",
        "webhook_url",
    )
    assert words in problem["detail"]
    assert service.http.get("/v1/jobs").json()["jobs"] == []
