"""Webhooks: where they may go, how they are signed, and the deliverer that sends what lies in the outbox."""

from service.webhooks.deliverer import Deliverer
from service.webhooks.screening import screen_webhook, webhook_guard

__all__ = ["Deliverer", "screen_webhook", "webhook_guard"]
