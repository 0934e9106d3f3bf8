"""The waiting room of uploads: how many bytes may lie in memory, and how long one waits until a decoder is free.

Both are bounded, so that a crowd of uploads is refused in time and can be sent again, and never fills the memory.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

from fastapi import Request

from jobs import JobError, Settings

# So many of the largest bodies may lie in memory at once, or many more small ones; what still comes in lies on disk.
MAX_HELD_BODIES = 4
RETRY_SECONDS = 5  # in which two decoders open half a dozen of the costliest files, and dozens of photographs


class WaitingRoom:
    """That of one API."""

    def __init__(self, settings: Settings) -> None:
        self._seconds = settings.decode_wait_seconds
        self._max_bytes = MAX_HELD_BODIES * settings.max_upload_bytes
        self.held_bytes = 0

    @contextlib.asynccontextmanager
    async def seat(self, request: Request) -> AsyncIterator["Seat"]:
        """A place for the uploads of one request, free again behind the block."""
        seat = Seat(self, request, self._seconds)
        try:
            yield seat
        finally:
            self.held_bytes -= seat.held_bytes
            seat.leave()

    def hold(self, num_bytes: int) -> None:
        """Count so many bytes more. Raises JobError decoders-busy when there is no room for them."""
        if self.held_bytes + num_bytes > self._max_bytes:
            limit = self._max_bytes / 2**20
            detail = f"The uploads at hand fill the {limit:.3g} MiB that are kept for them. Try again in a few seconds."
            raise JobError("decoders-busy", detail, retry_after_seconds=RETRY_SECONDS)
        self.held_bytes += num_bytes


class Seat:
    """What the uploads of one request take of the room. seconds: for how long they may wait still, all together."""

    def __init__(self, room: WaitingRoom, request: Request, seconds: float) -> None:
        self._room = room
        self._request = request
        self._gone: asyncio.Task[None] | None = None
        self._all_seconds = seconds
        self.seconds = seconds
        self.held_bytes = 0

    def hold(self, num_bytes: int) -> None:
        """Make room for bytes that are to be read into memory. Raises JobError decoders-busy."""
        self._room.hold(num_bytes)
        self.held_bytes += num_bytes

    @property
    def gone(self) -> asyncio.Task[None]:
        """Done once the caller hung up. To be asked for when the body was read: it is not heard twice."""
        if self._gone is None:
            self._gone = asyncio.create_task(self._hang_up())
        return self._gone

    async def _hang_up(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass

    def leave(self) -> None:
        """Watch the caller no longer."""
        if self._gone is not None:
            self._gone.cancel()

    def refusal(self) -> JobError:
        """Why nothing was opened."""
        if self.gone.done():
            return JobError("bad-request", "The connection ended while the upload waited for a decoder.")
        detail = (
            f"For {math.ceil(self._all_seconds)} s all decoders of this server were busy with uploads that came "
            "before. Try again in a few seconds."
        )
        return JobError("decoders-busy", detail, retry_after_seconds=RETRY_SECONDS)
