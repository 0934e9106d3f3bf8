"""Signatures are those of Standard Webhooks, as its reference library reads them."""

import base64
import json
import time

import pytest
from pydantic import ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from jobs import Settings
from service.webhooks.signing import signed_headers

OLD, NEW, OTHER = ("whsec_" + base64.b64encode(letter * 32).decode() for letter in (b"o", b"n", b"x"))
BODY = b'{"type":"job.succeeded"}'


def test_each_of_several_secrets_verifies_while_they_are_changed_and_no_other():
    headers = signed_headers(Settings(webhook_secret=f"{NEW} {OLD}").webhook_keys, "msg_1", int(time.time()), BODY)
    assert headers["webhook-signature"].count("v1,") == 2
    for secret in (OLD, NEW):
        assert Webhook(secret).verify(BODY, headers) == json.loads(BODY)
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(BODY, headers)


@pytest.mark.parametrize("change", ["id", "timestamp", "body"])
def test_nothing_that_was_signed_can_be_changed(change):
    headers, body = signed_headers(Settings(webhook_secret=NEW).webhook_keys, "msg_1", int(time.time()), BODY), BODY
    if change == "body":
        body += b" "
    else:
        headers[f"webhook-{change}"] = {"id": "msg_2", "timestamp": str(int(time.time()) + 1)}[change]
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(body, headers)


@pytest.mark.parametrize(
    "secret", ["plaintext", "whsec_", "whsec_abc", "whsec_" + "a" * 100, NEW + ",", f"{NEW} x", "whsec_é"]
)
def test_a_secret_that_is_none_ends_the_start_and_is_not_repeated(secret):
    with pytest.raises(ValidationError, match="whsec_ and the base64 of 24 to 64 bytes") as raised:
        Settings(webhook_secret=secret)
    assert secret not in str(raised.value) or secret == "whsec_"


def test_without_a_secret_there_are_no_keys_and_with_one_it_is_not_shown():
    for secret in (None, "", " "):
        assert Settings(webhook_secret=secret).webhook_keys == ()
    assert NEW not in repr(Settings(webhook_secret=NEW))
