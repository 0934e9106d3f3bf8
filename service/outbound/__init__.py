"""Requests of this server to addresses that callers name: which it may reach, and a client that reaches no other."""

from service.outbound.guard import BlockedUrl, Guard, UnresolvedName, open_client

__all__ = ["BlockedUrl", "Guard", "UnresolvedName", "open_client"]
