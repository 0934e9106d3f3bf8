"""`m3esr keys`: a key is shown once, and what is wrong is one line."""

import socket

import pytest

from jobs import KeyStore, Settings
from m3esr.database import find_running
from tests.conftest import everything_in, free_port
from tests.unit.m3esr.test_cli import run


@pytest.fixture
def keys(monkeypatch, capsys, redis_url):
    """Run `m3esr keys ...` on the Redis of the test."""
    monkeypatch.setenv("M3ESR_REDIS_URL", redis_url)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run(monkeypatch, capsys, "keys", *arguments)


def test_a_new_key_is_all_that_goes_to_stdout_and_opens(keys, redis):
    code, out, err = keys("create", "camera", "--requests-per-minute", "5", "--megapixels-per-day", "0")
    secret = out.removesuffix("\n")
    key = KeyStore(redis).authenticate(secret)
    assert (code, key.name, key.requests_per_minute, key.megapixels_per_day) == (0, "camera", 5, 0)
    assert key.id in err and secret not in err
    assert secret not in everything_in(redis)


def test_the_list_shows_what_is_known_and_never_a_secret(keys, redis):
    store = KeyStore(redis)
    used, secret = store.create("camera [1]", requests_per_minute=5, megapixels_per_day=0)
    store.authenticate(secret)
    revoked, _ = store.create("old")
    store.revoke(revoked.id)
    code, out, _ = keys("list")
    rows = {line.split()[1]: line for line in out.splitlines() if "camera" in line or "old" in line}
    assert code == 0
    assert "camera [1]" in rows[used.id] and " 5 " in rows[used.id] and " none " in rows[used.id]
    assert "as set" in rows[revoked.id] and "revoked 20" in rows[revoked.id] and "never" in rows[revoked.id]
    assert secret[-43:] not in out


def test_revoke_and_forget(keys, redis):
    store = KeyStore(redis)
    (first, secret), (second, _) = store.create("a"), store.create("b")
    assert keys("revoke", first.id)[0] == 0
    assert store.authenticate(secret) is None
    assert "asks for none" not in keys("forget", first.id)[1]
    keys("revoke", second.id)
    assert "asks for none" in keys("forget", second.id)[1]
    assert not store.is_configured()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", ""], "1 to 100 characters"),
        (["create", "a", "--requests-per-minute", "-1"], "--requests-per-minute"),
        (["revoke", "0123"], "no key '0123'"),
        (["forget", "0123"], "no revoked key '0123'"),
        (["create"], "Missing argument"),
    ],
)
def test_what_a_person_can_fix_is_one_line(keys, arguments, words):
    code, out, err = keys(*arguments)
    assert (code, out) == (2, "")
    assert words in err and err.count("\n") == 1


def test_a_key_that_is_not_revoked_is_not_forgotten(keys, redis):
    key, secret = KeyStore(redis).create("camera")
    assert keys("forget", key.id)[0] == 2
    assert KeyStore(redis).authenticate(secret)


def test_redis_away_is_one_line(keys, monkeypatch):
    monkeypatch.setenv("M3ESR_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    code, _, err = keys("list")
    assert code == 2
    assert "M3ESR_REDIS_URL" in err and err.count("\n") == 1


def test_without_a_named_redis_the_one_of_a_running_up_is_used(keys, monkeypatch, redis_server, redis, tmp_path):
    monkeypatch.delenv("M3ESR_REDIS_URL")
    monkeypatch.setenv("M3ESR_VAR", str(tmp_path))
    folder = tmp_path / "redis"
    assert find_running(folder) is None
    folder.mkdir()
    (folder / "redis.conf").write_text(f'port {free_port()}\nrequirepass word\nsave ""\n')
    assert find_running(folder) is None  # it is not running any more
    redis.config_set("requirepass", "word")
    try:
        (folder / "redis.conf").write_text(f'port {redis_server.port}\nrequirepass word\nsave ""\n')
        assert find_running(folder) == f"redis://:word@127.0.0.1:{redis_server.port}/0"
        assert keys("create", "camera")[0] == 0
    finally:
        redis.config_set("requirepass", "")
    assert [key.name for key in KeyStore(redis).list_keys()] == ["camera"]


def test_the_variable_of_the_client_is_no_setting_of_the_service():
    assert "api_key" not in Settings.model_fields


def test_serve_refuses_an_open_address_while_there_are_no_keys(keys, monkeypatch, capsys):
    monkeypatch.setenv("M3ESR_HOST", "0.0.0.0")
    code, out, err = run(monkeypatch, capsys, "serve")
    assert (code, out) == (2, "")
    assert "m3esr keys create" in err and "M3ESR_ALLOW_ANONYMOUS" in err and err.count("\n") == 1


def test_serve_takes_an_open_address_once_there_is_a_key(keys, redis, monkeypatch, capsys):
    KeyStore(redis).create("camera")
    monkeypatch.setenv("M3ESR_HOST", "0.0.0.0")
    with socket.create_server(("0.0.0.0", 0)) as taken:  # as far as the port, which is asked for after the keys
        code, _, err = run(monkeypatch, capsys, "serve", "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "Cannot listen on 0.0.0.0" in err
