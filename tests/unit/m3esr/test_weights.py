"""`m3esr models`: nothing is fetched unasked, a broken transfer goes on, and what lies there is what was listed."""

import hashlib
import json
import re

import pytest

from m3esr import holdings, transfer
from models import receipts
from models.catalogue import missing
from models.sources import FILE, SOURCES, Part, Source
from tests.conftest import free_port
from tests.unit.m3esr.conftest import RELEASE, TERMS, WEIGHTS
from tests.unit.m3esr.hub_server import COMMIT, pull


def asked_for(hub, path):
    return [told for asked, told in hub.requests if asked.endswith(path)]


def test_a_profile_is_fetched_whole_and_only_what_is_needed(hub, models):
    code, _, err = pull(models, "small")
    assert code == 0, err
    folder = models.root / "someone/net"
    assert (folder / "net/model.safetensors").read_bytes() == WEIGHTS
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        ".m3esr.json",
        "net/config.json",
        "net/model.safetensors",
        "words/tokenizer.json",
        "words/vocab.txt",
    ]
    assert missing(models.root, "small") == []
    told = json.loads((folder / receipts.NAME).read_text())
    assert (told["commit"], told["licence"]) == (COMMIT, "Some License")
    assert told["files"]["net/model.safetensors"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    hub.requests.clear()
    assert pull(models, "small")[0] == 0
    assert hub.requests == []


def test_licences_are_told_and_nothing_is_fetched_before_they_are_accepted(hub, models):
    code, _, err = models("pull", "small")
    assert code == 2
    for words in ("Some License: NO COMMERCIAL USE", "ask first", "https://licence.example", "--accept-license"):
        assert words in err
    assert hub.requests == [] and not models.root.exists()


@pytest.mark.parametrize(("word", "code"), [("y\n", 0), ("n\n", 130)])
def test_at_a_terminal_the_question_is_asked(hub, models, monkeypatch, word, code):
    class Terminal:
        isatty = staticmethod(lambda: True)
        readline = staticmethod(lambda *_: word)

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt="": word.strip())
    assert models("pull", "small")[0] == code
    assert models.root.exists() == (code == 0)


def test_a_transfer_that_breaks_off_goes_on_where_it_was(hub, models):
    hub.breaks["net/model.safetensors"] = [100_000, 50_000]
    code, _, err = pull(models, "small")
    assert code == 0, err
    assert asked_for(hub, "model.safetensors") == [None, "bytes=100000-", "bytes=150000-"]
    assert (models.root / "someone/net/net/model.safetensors").read_bytes() == WEIGHTS


def test_a_broken_pull_is_taken_up_by_the_next(hub, models):
    hub.breaks["net/model.safetensors"] = [120_000] + [0] * transfer.RETRIES
    code, _, err = pull(models, "small")
    assert code == 2 and "keeps breaking off" in err and "run the same command again" in err
    folder = models.root / "someone/net"
    assert not (folder / "net/model.safetensors").exists()
    assert "someone/net/net" in missing(models.root, "small")
    assert re.search(r"│ tiny .* no +│\n", models("list")[1])
    hub.breaks.clear()
    hub.requests.clear()
    assert pull(models, "small")[0] == 0
    assert asked_for(hub, "model.safetensors") == ["bytes=120000-"]
    assert asked_for(hub, "net/config.json") == []
    assert (folder / "net/model.safetensors").read_bytes() == WEIGHTS
    assert not list(folder.rglob("*.partial"))


def test_a_server_without_ranges_starts_again(hub, models):
    hub.has_ranges = False
    hub.breaks["net/model.safetensors"] = [100_000]
    assert pull(models, "small")[0] == 0
    assert (models.root / "someone/net/net/model.safetensors").read_bytes() == WEIGHTS


def test_a_busy_server_is_asked_again(hub, models):
    hub.busy = 3
    assert pull(models, "release")[0] == 0
    hub.busy = 99
    code, _, err = pull(models, "small")
    assert code == 2 and "status 503" in err


def test_other_bytes_than_listed_are_thrown_away(hub, models):
    hub.sent["net/model.safetensors"] = WEIGHTS[:-1] + b"!"
    code, _, err = pull(models, "small")
    assert code == 2 and "its sum is" in err and hashlib.sha256(WEIGHTS).hexdigest() in err
    folder = models.root / "someone/net/net"
    assert not (folder / "model.safetensors").exists() and not list(folder.glob(".*partial"))
    hub.sent = {"words/vocab.txt": b"a c"}
    assert "expected git" in pull(models, "small")[2]


@pytest.mark.parametrize(("size", "words"), [(-100, "only"), (100, "more than")])
def test_a_file_of_another_length_is_told(hub, models, size, words):
    hub.sent["net/model.safetensors"] = WEIGHTS[:size] if size < 0 else WEIGHTS + bytes(size)
    code, _, err = pull(models, "small")
    assert code == 2 and words in err
    assert not (models.root / "someone/net/net/model.safetensors").exists()


def test_a_known_sum_of_a_release_is_checked(hub, models, monkeypatch):
    def with_sum(sha256):
        part = Part("net.pth", len(RELEASE), FILE, sha256, f"{hub.url}/releases/net.pth")
        monkeypatch.setitem(SOURCES, "release", Source("release", "A net", "someone/released", TERMS, (part,)))

    with_sum("0" * 64)
    assert "expected 0000" in pull(models, "release")[2]
    with_sum(hashlib.sha256(RELEASE).hexdigest())
    assert pull(models, "release")[0] == 0


def test_a_file_that_changed_on_the_hub_is_not_fetched(hub, models, monkeypatch):
    part = Part("net/model.safetensors", len(WEIGHTS), FILE, "abcd...ef")
    monkeypatch.setitem(SOURCES, "tiny", Source("tiny", "A net", "someone/net", TERMS, (part,)))
    code, _, err = pull(models, "tiny")
    assert code == 2 and "has changed on the hub" in err
    assert not models.root.exists()


def test_a_gate_says_what_to_do(hub, models, monkeypatch):
    code, _, err = pull(models, "locked")
    assert code == 2
    for words in ("someone/locked is gated", "Ask them", f"{hub.url}/someone/locked", "hf auth login", "HF_TOKEN"):
        assert words in err
    assert not models.root.exists()
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert pull(models, "locked")[0] == 0
    assert missing(models.root, "locked") == []


def test_a_refusal_in_the_middle_says_the_same(hub, models, monkeypatch):
    monkeypatch.setitem(SOURCES, "locked", Source("locked", "A net", "someone/open", TERMS, (Part("", 10),)))
    hub.files["someone/open"] = dict(hub.files["someone/locked"])
    from m3esr import weights

    fetch_all = weights._fetch_all

    def lock_first(*arguments):
        hub.gated.add("someone/open")
        fetch_all(*arguments)

    monkeypatch.setattr(weights, "_fetch_all", lock_first)
    code, _, err = pull(models, "locked")
    assert code == 2 and "refuses it (401)" in err and f"{hub.url}/someone/open" in err


def test_a_repository_that_is_gone(hub, models):
    del hub.files["someone/net"]
    code, _, err = pull(models, "small")
    assert code == 2 and "the hub has no someone/net" in err


def test_a_hub_that_does_not_answer(hub, models, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    code, _, err = pull(models, "small")
    assert code == 2 and "does not answer" in err and "HF_ENDPOINT" in err


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_offline_asks_nobody_and_says_what_is_missing(hub, models, monkeypatch, how):
    if how == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = pull(models, "small", *(["--offline"] if how == "flag" else []))
    assert code == 2 and "someone/net/net, someone/net/words" in err and "HF_HUB_OFFLINE" in err
    assert hub.requests == []


def test_what_is_there_is_all_there_offline_too(hub, models):
    pull(models, "small")
    assert models("pull", "small", "--offline")[0] == 0


def test_space_is_checked_before_a_byte_is_fetched(hub, models, monkeypatch):
    monkeypatch.setattr(holdings, "free_bytes", lambda root: 1000)
    code, _, err = pull(models, "small")
    assert code == 2 and "are needed and 1 kB are free" in err
    assert not models.root.exists()


def test_a_disk_that_fills_up_is_one_line_and_the_bytes_stay(hub, models, monkeypatch):
    import errno

    original = transfer._stream

    def fill_up(client, remote, file, on_bytes):
        if remote.path.endswith("model.safetensors"):
            file.write(WEIGHTS[:5000])
            file.flush()
            raise OSError(errno.ENOSPC, "No space left on device", str(models.root))
        original(client, remote, file, on_bytes)

    monkeypatch.setattr(transfer, "_stream", fill_up)
    code, _, err = pull(models, "small")
    assert code == 2 and "no space left on the device" in err
    monkeypatch.setattr(transfer, "_stream", original)
    hub.requests.clear()
    assert pull(models, "small")[0] == 0
    assert asked_for(hub, "model.safetensors") == ["bytes=5000-"]


def test_two_pulls_do_not_write_one_file(hub, models):
    import fcntl

    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    partial = models.root / f"someone/net/net/.model.safetensors.{sha256[:12]}.partial"
    partial.parent.mkdir(parents=True)
    with partial.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = pull(models, "small")
    assert code == 2 and "another m3esr models pull" in err


def test_an_interrupted_part_is_not_taken_for_whole(hub, models):
    hub.sent["words/vocab.txt"] = b"x y"
    pull(models, "small")
    assert (models.root / "someone/net/words/tokenizer.json").exists()
    assert missing(models.root, "small") == ["someone/net/words"]


def test_a_name_that_is_none_and_a_folder_that_is_a_file(models):
    code, _, err = pull(models, "qualty")
    assert code == 2 and "no weights named 'qualty'" in err and "quality" in err
    models.root.write_text("")
    assert "is not a folder" in models("list")[2]
