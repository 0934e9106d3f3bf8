"""The API is a promise: docs/openapi.json is what the server serves, to the letter."""

import json
from pathlib import Path

from jobs import BlobStore, Settings, connect
from service.app import create_app

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"


def served() -> str:
    """The document the app answers with (nothing is connected to for it)."""
    settings = Settings()
    app = create_app(settings, connect(settings.redis_url), BlobStore.open("memory:///"))
    schema = app.openapi()
    schema["info"]["version"] = "0"  # the release is told by the metadata, not by a file to be kept in step
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def test_the_checked_in_document_is_the_one_served():
    advice = "write it anew with: python -m tests.policy.test_openapi"
    assert DOCUMENT.read_text() == served(), advice


def test_every_operation_tells_its_errors_as_problems():
    paths = json.loads(served())["paths"]
    for path, methods in paths.items():
        for method, operation in methods.items():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], (path, method, status)


def test_every_v1_operation_asks_for_a_key_and_says_how_it_refuses():
    for path, methods in json.loads(served())["paths"].items():
        for method, operation in methods.items():
            is_behind_a_key = {"Bearer": []} in operation.get("security", []) and "401" in operation["responses"]
            assert is_behind_a_key == path.startswith("/v1/"), (path, method)


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(served())
