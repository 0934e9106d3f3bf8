"""A hub on loopback with three small sources in the catalogue, and `m3esr models` on a folder of its own."""

import pytest

from m3esr import transfer
from models.catalogue import GROUPS, PROFILES
from models.sources import FILE, SOURCES, TEXTS, Part, Source, Terms
from tests.unit.m3esr.hub_server import FakeHub, running
from tests.unit.m3esr.test_cli import run

TERMS = Terms("Some License", "https://licence.example", False, "ask first")
WEIGHTS = bytes(range(256)) * 1200  # 300 kB
RELEASE = b"release" * 1000


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one repository of a network and a tokenizer, one gated, and a release page."""
    hub = FakeHub()
    hub.files["someone/net"] = {
        "README.md": b"read me",
        "net/config.json": b'{"a": 1}',
        "net/model.safetensors": WEIGHTS,
        "net/model.fp16.safetensors": WEIGHTS[: len(WEIGHTS) // 2],
        "words/tokenizer.json": b"{}",
        "words/vocab.txt": b"a b",
    }
    hub.files["someone/locked"] = {"config.json": b"{}", "model.safetensors": WEIGHTS}
    hub.gated.add("someone/locked")
    hub.files["releases"] = {"net.pth": RELEASE}
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.01)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with running(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
        release = Part("net.pth", len(RELEASE), FILE, url=f"{hub.url}/releases/net.pth")
        sources = (
            Source("tiny", "A tiny net", "someone/net", TERMS, (Part("net", 1000), Part("words", 10, TEXTS))),
            Source("locked", "A gated net", "someone/locked", TERMS, (Part("", 1000),), "ask them"),
            Source("release", "A released net", "someone/released", TERMS, (release,)),
        )
        for source in sources:
            monkeypatch.setitem(SOURCES, source.name, source)
        monkeypatch.setitem(PROFILES, "small", ("tiny",))
        monkeypatch.setitem(GROUPS, "both", ("tiny", "release"))
        yield hub


@pytest.fixture
def models(monkeypatch, capsys, tmp_path):
    """Run `m3esr models ...` on a models folder; gives exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    root = tmp_path / "models"

    def call(*arguments):
        return run(monkeypatch, capsys, "models", *arguments, "--models-dir", str(root))

    call.root = root
    return call
