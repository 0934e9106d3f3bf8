"""What a caller may ask, and the output size that follows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs import MODALITIES, JobError, UpscaleRequest
from jobs.options import parse_modalities


def test_with_no_size_given_the_scale_is_four_and_all_modalities_are_on():
    request = UpscaleRequest()
    assert (request.scale, request.width, request.seed) == (4.0, None, 0)
    assert request.modalities == dict.fromkeys(MODALITIES, 1.0)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (40, 28)),
        ({"scale": 1.5}, (15, 11)),  # 10.5 rounds up
        ({"width": 20}, (20, 14)),
        ({"height": 14}, (20, 14)),
        ({"width": 30, "height": 10}, (30, 10)),
        ({"megapixels": 0.00028}, (20, 14)),
    ],
)
def test_output_size_of_a_10x7_image(options, size):
    assert UpscaleRequest(**options).output_size(10, 7) == size


@pytest.mark.parametrize("options", [{"width": 9}, {"width": 41}, {"height": 6}, {"megapixels": 1}])
def test_a_side_may_neither_shrink_nor_grow_more_than_four_times(options):
    with pytest.raises(JobError) as raised:
        UpscaleRequest(**options).output_size(10, 7)
    assert raised.value.code == "invalid-option"
    assert raised.value.field in options


@given(st.floats(1.01, 4), st.integers(1, 5000), st.integers(1, 5000))
def test_any_scale_gives_a_size_within_the_limits(scale, width, height):
    sr_width, sr_height = UpscaleRequest(scale=scale).output_size(width, height)
    assert width <= sr_width <= 4 * width
    assert height <= sr_height <= 4 * height


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 1},
        {"scale": 4.1},
        {"scale": "nan"},
        {"scale": 2, "width": 100},
        {"width": 100, "megapixels": 1},
        {"num_steps": 0},
        {"preset": "quick"},
        {"seed": -1},
        {"seed": 2**32},
        {"output_format": "gif"},
        {"quality": 101},
        {"prompt": "a" * 2001},
        {"modalities": "depth:3"},
        {"modalities": "smell"},
        {"modalities": "depth,depth"},
        {"modalities": ""},
        {"priority": 1},
        {"webhook_url": "https://example.org/" + "a" * 2048},
        {"webhook_url": "https://example.org", "webhook_events": "job.running"},
        {"webhook_url": "https://example.org", "webhook_events": ","},
        {"webhook_events": "job.failed"},
    ],
)
def test_what_is_out_of_range_contradictory_or_unknown_is_refused(options):
    with pytest.raises(ValidationError):
        UpscaleRequest(**options)


def test_modalities_are_read_from_names_with_strengths():
    assert parse_modalities("depth, edge:0.5") == {"depth": 1.0, "edge": 0.5}
    assert parse_modalities("none") == {}


@pytest.mark.parametrize("options", [{}, {"width": 64}, {"megapixels": 2, "modalities": "dino:0.3"}])
def test_a_request_survives_the_way_through_json(options):
    request = UpscaleRequest(**options)
    assert UpscaleRequest.model_validate_json(request.model_dump_json()) == request


def test_webhook_events_are_read_from_names_and_survive_the_record():
    request = UpscaleRequest(webhook_url="https://example.org", webhook_events="job.failed, job.canceled,job.failed")
    assert request.webhook_events == ("job.failed", "job.canceled")
    for each in (request, UpscaleRequest()):
        assert UpscaleRequest.model_validate_json(each.model_dump_json()) == each
