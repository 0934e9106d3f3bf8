"""Waiting for a decoder: no longer than the seat allows, without a thread, and leaving nothing behind."""

import asyncio
import contextlib
import threading
import time
from types import SimpleNamespace
from typing import cast

import pytest
from fastapi import Request

from jobs import JobError, Settings
from service.decoding import Decoders, Helper, Limits
from service.waiting import MAX_HELD_BODIES, WaitingRoom
from tests.fakes import picture
from tests.unit.service.seats import Caller, a_seat

LIMITS = Limits(header_seconds=1.0, seconds=5.0, wall_seconds=20.0, megabytes=300)


@pytest.fixture
def decoders(monkeypatch):
    """One decoder that answers once `go_on` is set."""
    decoders, go_on, ask = Decoders(1), threading.Event(), Helper.ask

    def ask_when_told(self, request, data, check):
        assert go_on.wait(60)
        return ask(self, request, data, check)

    monkeypatch.setattr(Helper, "ask", ask_when_told)
    yield SimpleNamespace(all=decoders, go_on=go_on)
    go_on.set()
    decoders.stop()


def start(decoders, seat, width=16):
    data = picture(width, 12)
    return asyncio.ensure_future(decoders.all.examine(data, lambda facts: None, LIMITS, seat))


async def code_of(opening):
    with pytest.raises(JobError) as raised:
        await opening
    return raised.value.code


def test_who_comes_too_late_is_told_so_in_time_and_the_rest_are_served_in_order(decoders):
    async def run():
        first = start(decoders, a_seat(), 20)
        await asyncio.sleep(0.1)
        started, num_threads = time.monotonic(), threading.active_count()
        late = [start(decoders, a_seat(0.5)) for _ in range(50)]
        patient = [start(decoders, a_seat(), width) for width in (21, 22)]
        assert {await code_of(opening) for opening in late} == {"decoders-busy"}
        assert 0.5 <= time.monotonic() - started < 10
        assert threading.active_count() <= num_threads + 1  # none for each who waits
        decoders.go_on.set()
        return [(await opening).width for opening in (first, *patient)]

    assert asyncio.run(run()) == [20, 21, 22]


@pytest.mark.parametrize("how", ["hangs up", "is cancelled"])
def test_who_goes_away_while_waiting_leaves_no_place_taken(decoders, how):
    async def run():
        first = start(decoders, a_seat(), 20)
        await asyncio.sleep(0.1)
        caller = Caller()
        waiting = start(decoders, a_seat(60, caller))
        await asyncio.sleep(0.1)
        if how == "hangs up":
            caller.hang_up()
            assert await code_of(waiting) == "bad-request"
        else:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
        decoders.go_on.set()
        return [(await opening).width for opening in (first, start(decoders, a_seat(), 21))]

    assert asyncio.run(run()) == [20, 21]


def test_who_is_given_up_while_being_served_gives_the_decoder_back_when_it_is_done(decoders):
    async def run():
        served = start(decoders, a_seat())
        await asyncio.sleep(0.1)
        served.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await served
        assert await code_of(start(decoders, a_seat(0.3))) == "decoders-busy"  # it is at work still
        decoders.go_on.set()
        return (await start(decoders, a_seat(), 22)).width

    assert asyncio.run(run()) == 22


def test_waiting_is_taken_off_and_being_served_is_not(decoders):
    async def run():
        first, seat = start(decoders, a_seat()), a_seat(60)
        await asyncio.sleep(0.1)
        second = start(decoders, seat)
        await asyncio.sleep(0.5)
        decoders.go_on.set()
        await asyncio.gather(first, second)
        assert 50 < seat.seconds <= 59.5
        before = seat.seconds
        decoders.go_on.clear()
        third = start(decoders, seat)
        await asyncio.sleep(1.0)
        decoders.go_on.set()
        await third
        assert before - seat.seconds < 0.9

    asyncio.run(run())


def test_a_free_decoder_is_had_without_any_time_left(decoders):
    decoders.go_on.set()
    assert asyncio.run(_examine(decoders, a_seat, -1.0)).width == 16


async def _examine(decoders, seat, seconds):
    return await start(decoders, seat(seconds))


def test_the_room_holds_so_many_bytes_and_counts_those_that_leave():
    room = WaitingRoom(Settings(storage_url="memory:///", max_upload_bytes=100))
    request = cast(Request, Caller)

    async def run():
        async with room.seat(request) as seat:
            for _ in range(MAX_HELD_BODIES):
                seat.hold(100)
            async with room.seat(request) as other:
                with pytest.raises(JobError) as raised:
                    other.hold(1)
                assert (raised.value.code, raised.value.status) == ("decoders-busy", 503)
                assert raised.value.retry_after_seconds > 0
        assert room.held_bytes == 0
        with contextlib.suppress(ValueError):
            async with room.seat(request) as seat:
                seat.hold(100)
                raise ValueError
        assert room.held_bytes == 0

    asyncio.run(run())
