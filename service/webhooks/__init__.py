"""Webhooks: where they may go, how they are signed, and the deliverer that sends what lies in the outbox."""

from service.webhooks.deliverer import Deliverer
from service.webhooks.guard import BlockedUrl, Guard, UnresolvedName
from service.webhooks.screening import screen_webhook

__all__ = ["BlockedUrl", "Deliverer", "Guard", "UnresolvedName", "screen_webhook"]
