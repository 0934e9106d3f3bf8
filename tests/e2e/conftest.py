"""End-to-end tests are marked, so that they can be left out: pytest -m 'not e2e'."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "e2e: runs the whole product with its real weights")
