"""`m3esr models list`, `verify` and `rm`: what lies in the models folder, whether it is sound, and how it goes."""

import re

from m3esr import transfer
from models import receipts
from models.catalogue import PROFILES, missing
from models.sources import SOURCES, TEXTS, Part, Source
from tests.unit.m3esr.conftest import RELEASE, TERMS, WEIGHTS
from tests.unit.m3esr.hub_server import pull


def test_the_list_tells_sizes_licences_gates_and_what_is_there(hub, models):
    pull(models, "release")
    code, out, _ = models("list")
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert code == 0
    assert " small, both " in rows["tiny"] and re.search(r"│ no +│$", rows["tiny"])
    assert re.search(r"│ yes +│ no +│$", rows["locked"])
    assert "NO COMMERCIAL USE" in rows["release"] and re.search(r"│ yes +│$", rows["release"])
    assert "6.6 GB" in rows["dit4sr-r1"] and "Stability AI" in rows["sd35"]
    assert str(models.root) in out


def test_verify_finds_what_is_damaged_and_pull_mends_it(hub, models):
    pull(models, "both")
    assert models("verify")[:2] == (0, "5 files are as they were fetched.\n")
    folder = models.root / "someone/net"
    (folder / "net/model.safetensors").write_bytes(WEIGHTS[:-1] + b"!")
    (folder / "words/vocab.txt").write_bytes(b"a")
    (models.root / "someone/released/net.pth").write_bytes(b"Release" + RELEASE[7:])
    code, out, err = models("verify")
    assert code == 2 and "3 of 5 files" in err
    assert "someone/net/net/model.safetensors: another sha256" in out
    assert "someone/net/words/vocab.txt: 1 bytes instead of 3" in out
    assert models("verify", "release")[0] == 2
    models("verify", "--delete")
    assert pull(models, "both")[0] == 0
    assert models("verify")[0] == 0
    (folder / "words/vocab.txt").unlink()
    assert "vocab.txt: missing" in models("verify", "tiny")[1]


def test_verify_has_nothing_to_compare_with(models):
    code, _, err = models("verify")
    assert code == 2 and "nothing to compare" in err


def test_rm_removes_files_and_empty_folders_and_asks_first(hub, models):
    pull(models, "both")
    code, _, err = models("rm", "release")
    assert code == 2 and "--yes" in err
    code, out, _ = models("rm", "both", "--yes")
    assert code == 0 and "tiny" not in out and "release" in out  # `small` is whole and needs tiny
    assert missing(models.root, "small") == [] and not (models.root / "someone/released").exists()
    assert models("rm", "tiny", "--yes")[0] == 0
    assert list(models.root.iterdir()) == []
    assert models("rm", "tiny", "--yes")[0] == 2


def test_rm_leaves_what_shares_the_repository(hub, models, monkeypatch):
    for name in ("net", "words"):
        kind = TEXTS if name == "words" else "model"
        monkeypatch.setitem(SOURCES, name, Source(name, name, "someone/net", TERMS, (Part(name, 10, kind),)))
    monkeypatch.delitem(SOURCES, "tiny")
    monkeypatch.delitem(PROFILES, "small")
    pull(models, "net", "words")
    models("rm", "net", "--yes")
    assert missing(models.root, "words") == [] and missing(models.root, "net") == ["someone/net/net"]
    assert models("verify")[:2] == (0, "2 files are as they were fetched.\n")


def test_rm_takes_the_half_of_a_download(hub, models):
    hub.breaks["net/model.safetensors"] = [120_000] + [0] * transfer.RETRIES
    pull(models, "small")
    assert models("rm", "tiny", "--yes")[0] == 0
    assert list(models.root.iterdir()) == []


def test_a_torn_receipt_is_told(hub, models):
    pull(models, "small")
    (models.root / "someone/net" / receipts.NAME).write_text("{")
    code, _, err = models("verify")
    assert code == 2 and "cannot be read" in err
