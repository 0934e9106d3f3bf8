"""What a person configures, calls or watches is documented: settings, routes, fields, problems, metrics."""

import json
import re
from pathlib import Path

import pytest

from jobs import ERROR_KINDS, MODALITIES, Settings, UpscaleRequest

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = ROOT / "docs" / "configuration.md"
API = ROOT / "docs" / "api.md"
OPERATIONS = ROOT / "docs" / "operations.md"
PACKAGES = ("jobs", "service", "worker", "models", "m3esr")
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"
UNSET = {"checkpoint": "those of the profile", "webhook_secret": "none: no webhooks"}


def settings_table() -> str:
    """The table of docs/configuration.md, from the fields that are read."""
    lines = ["| Variable | Default | What it does |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `M3ESR_{name.upper()}` | {_default(name, field.default)} | {field.description} |")
    return "\n".join(lines) + "\n"


def _default(name: str, value: object) -> str:
    if value is None:
        return UNSET[name]
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def with_table(text: str) -> str:
    """`text` with the settings table written anew between its marks."""
    head, rest = text.split(BEGIN)
    return head + BEGIN + settings_table() + END + rest.split(END)[1]


def sources(*patterns: str) -> str:
    """All files of the patterns as one text."""
    return "\n".join(path.read_text() for pattern in patterns for path in sorted(ROOT.glob(pattern)))


def missing(names: set[str], document: Path) -> list[str]:
    """Those of `names` that the document does not say in code quotes."""
    text = document.read_text()
    return sorted(name for name in names if f"`{name}`" not in text)


def test_the_table_of_settings_is_the_one_the_fields_tell():
    advice = "write it anew with: python -m tests.policy.test_docs"
    text = CONFIGURATION.read_text()
    assert text == with_table(text), advice


def test_every_variable_that_is_read_anywhere_is_documented():
    read = sources(*(f"{package}/**/*.py" for package in PACKAGES), "Makefile", "docker/*", "docker-compose.yml")
    names = set(re.findall(r"\bM3ESR_[A-Z][A-Z_]*[A-Z]\b", read))
    assert "M3ESR_PORT" in names
    assert missing(names, CONFIGURATION) == []


def test_no_document_names_a_variable_that_nothing_reads():
    known = {f"M3ESR_{name.upper()}" for name in Settings.model_fields}
    read = sources(*(f"{package}/**/*.py" for package in PACKAGES), "Makefile", "docker/*", "docker-compose.yml")
    named = set(re.findall(r"\bM3ESR_[A-Z][A-Z_]*[A-Z]\b", sources("README.md", "docs/*.md")))
    assert sorted(named - known - set(re.findall(r"\bM3ESR_[A-Z_]*[A-Z]\b", read))) == []


def test_every_route_is_in_the_api_document():
    operations = {
        f"{method.upper()} {path.replace('{job_id}', '<id>').replace('{batch_id}', '<id>').replace('{name}', '<name>')}"
        for path, methods in json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"].items()
        for method in methods
    }
    text = API.read_text()
    assert sorted(operation for operation in operations if f"`{operation}`" not in text) == []


def test_every_form_field_is_in_the_api_document():
    assert missing({"file", *UpscaleRequest.model_fields, *MODALITIES}, API) == []


@pytest.mark.parametrize(
    "shape",
    [
        "JobView",
        "BatchView",
        "EstimateView",
        "Problem",
        "MapView",
        "PreviewView",
        "ResultView",
        "Trust",
        "ModelInfo",
        "WebhookView",
    ],
)
def test_every_field_of_an_answer_is_in_the_api_document(shape):
    schemas = json.loads((ROOT / "docs" / "openapi.json").read_text())["components"]["schemas"]
    assert missing(set(schemas[shape]["properties"]), API) == []


def test_every_problem_is_in_the_api_document_with_its_status():
    text = API.read_text()
    rows = {code: f"| `{code}` | {kind.status} | {kind.title}" for code, kind in ERROR_KINDS.items()}
    assert [code for code, row in rows.items() if row not in text] == []


def test_every_metric_is_in_the_operations_document():
    names = set(re.findall(r'"(m3esr_\w+)"', sources("service/metrics.py", "worker/metrics.py")))
    assert "m3esr_queue_depth" in names
    assert [name for name in sorted(names) if name not in OPERATIONS.read_text()] == []


if __name__ == "__main__":
    CONFIGURATION.write_text(with_table(CONFIGURATION.read_text()))
