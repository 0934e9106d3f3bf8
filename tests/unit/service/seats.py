"""Seats of the waiting room for tests, and files opened from code that does not await."""

import asyncio
from typing import cast

from fastapi import Request

from jobs import Settings
from service.decoding import Check, Decoders, ImageFacts, Limits
from service.waiting import Seat, WaitingRoom


class Caller:
    """A request of which only the end of the connection is heard, when `hang_up` is called."""

    def __init__(self) -> None:
        self._is_gone = asyncio.Event()

    def hang_up(self) -> None:
        """End the connection."""
        self._is_gone.set()

    async def receive(self) -> dict[str, str]:
        """As of a request whose body was read."""
        await self._is_gone.wait()
        return {"type": "http.disconnect"}


def a_seat(seconds: float = 60.0, caller: Caller | None = None) -> Seat:
    """One that may wait for so long."""
    room = WaitingRoom(Settings(storage_url="memory:///"))
    return Seat(room, cast(Request, caller or Caller()), seconds)


def examine_now(decoders: Decoders, data: bytes, check: Check, limits: Limits) -> ImageFacts:
    """`Decoders.examine` with time to wait."""

    async def examine() -> ImageFacts:
        seat = a_seat()
        try:
            return await decoders.examine(data, check, limits, seat)
        finally:
            seat.leave()

    return asyncio.run(examine())
