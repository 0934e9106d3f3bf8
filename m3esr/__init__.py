"""What the outside touches: the command line and the HTTP client."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m3esr.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `m3esr --help` does not wait for an HTTP library.
    if name == "Client":
        from m3esr.client import Client

        return Client
    raise AttributeError(f"module 'm3esr' has no attribute '{name}'")
