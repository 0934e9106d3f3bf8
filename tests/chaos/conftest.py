"""A fleet per test, ended after it."""

import pytest

from tests.chaos.fleet import Fleet


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.close()
