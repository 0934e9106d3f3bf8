"""Fixtures of tests that hold for both public backbones; a module gives its own `root`."""

import pytest

from tests.unit.models.backbones.hubs import PROFILES, load


@pytest.fixture(scope="module", params=PROFILES)
def profile(request):
    return request.param


@pytest.fixture(scope="module")
def upscaler(root, profile):
    return load(root, profile)
