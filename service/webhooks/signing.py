"""Signatures of Standard Webhooks: HMAC-SHA256 over id, time and body."""

import base64
import hashlib
import hmac
from collections.abc import Iterable


def signed_headers(keys: Iterable[bytes], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers that tell a receiver who sent `body`; one signature per key.

    timestamp: of this try, seconds since 1970; receivers refuse an old one, so that nothing is played back to them.
    """
    signed = b".".join((webhook_id.encode(), str(timestamp).encode(), body))
    signatures = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys]
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
