"""The helper that opens uploads answers the right question, whatever became of the one before."""

import os
import signal

import pytest

from jobs import JobError
from service.decoding import Decoders, Limits
from tests.fakes import picture
from tests.unit.service.seats import examine_now

LIMITS = Limits(header_seconds=1.0, seconds=5.0, wall_seconds=20.0, megabytes=300)


@pytest.fixture
def decoders():
    decoders = Decoders(1)
    yield decoders
    decoders.stop()


def examine(decoders, width, check=lambda facts: None):
    return examine_now(decoders, picture(width, 12), check, LIMITS)


def test_the_size_is_told_before_a_pixel_is_decoded(decoders):
    truncated = picture(300, 200)[:-2000]
    seen = []
    with pytest.raises(JobError) as raised:
        examine_now(decoders, truncated, seen.append, LIMITS)
    assert [(facts.width, facts.height) for facts in seen] == [(300, 200)]
    assert raised.value.code == "invalid-image"


def test_who_is_refused_by_size_leaves_nothing_to_the_next(decoders):
    def refuse(facts):
        raise JobError("too-many-pixels", "No.")

    for _ in range(2):
        with pytest.raises(JobError, match=r"No\."):
            examine(decoders, 20, refuse)
        assert examine(decoders, 21).width == 21


def test_a_refusal_of_the_header_leaves_nothing_to_the_next(decoders):
    with pytest.raises(JobError) as raised:
        examine_now(decoders, b"no image", lambda facts: None, LIMITS)
    assert raised.value.code == "unsupported-format"
    assert examine(decoders, 22).width == 22


@pytest.mark.parametrize("whom", ["helper", "its child"])
def test_one_that_dies_between_header_and_pixels_is_replaced_or_tells(decoders, whom):
    deaths = []

    def kill(facts):
        if deaths:
            return
        helper = decoders._helpers[0]._process.pid
        with open(f"/proc/{helper}/task/{helper}/children") as children:
            child = int(children.read().split()[0])
        deaths.append(whom)
        os.kill(helper if whom == "helper" else child, signal.SIGKILL)

    if whom == "helper":
        assert examine(decoders, 23, kill).width == 23  # by the next one
    else:
        with pytest.raises(JobError) as raised:
            examine(decoders, 23, kill)
        assert raised.value.code == "costly-image"
    assert deaths and examine(decoders, 24).width == 24
