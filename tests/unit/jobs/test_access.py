"""API keys in Redis: what opens, what is kept, and what revoking does."""

import hashlib

import pytest

from jobs import KeyStore
from tests.conftest import everything_in
from tests.fakes import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(redis, clock):
    return KeyStore(redis, clock=clock)


def test_a_secret_opens_what_it_was_made_for(store):
    key, secret = store.create("camera", requests_per_minute=5, megapixels_per_day=0)
    found = store.authenticate(secret)
    assert (found.id, found.name, found.requests_per_minute, found.megapixels_per_day) == (key.id, "camera", 5, 0)
    assert secret.startswith(f"m3esr_{key.id}_")
    assert len(secret.rpartition(f"{key.id}_")[2]) == 43  # 32 random bytes


def test_two_keys_of_one_name_are_two(store):
    (first, one), (second, two) = store.create("camera"), store.create("camera")
    assert first.id != second.id
    assert one[-43:] != two[-43:]


def test_of_the_secret_only_its_hash_is_kept(redis, store):
    _, secret = store.create("camera")
    store.authenticate(secret)
    kept = everything_in(redis)
    assert secret not in kept and secret[-43:] not in kept
    assert hashlib.sha256(secret.encode()).hexdigest() in kept


@pytest.mark.parametrize(
    "alter",
    [
        lambda secret: secret[:-1] + ("A" if secret[-1] != "A" else "B"),
        lambda secret: secret[:-1],
        lambda secret: secret + "A",
        lambda secret: "m3esr_" + "0" * 16 + secret[22:],
        lambda secret: secret.upper(),
        lambda secret: secret[-43:],
        lambda secret: "",
        lambda secret: "m3esr_*_" + secret[-43:],
        lambda secret: secret + "\n",
        lambda secret: "ключ",
    ],
)
def test_anything_else_opens_nothing(store, alter):
    _, secret = store.create("camera")
    assert store.authenticate(alter(secret)) is None


def test_the_secret_of_one_key_does_not_open_another(store):
    (first, one), (second, _) = store.create("a"), store.create("b")
    assert store.authenticate(one.replace(first.id, second.id)) is None


def test_a_record_without_a_digest_is_opened_by_nothing(redis, store):
    key, secret = store.create("camera")
    redis.hdel(f"m3esr:api-key:{key.id}", "digest")
    assert store.authenticate(secret) is None


def test_a_revoked_key_opens_nothing_and_stays_on_the_list(store, clock):
    kept, good = store.create("a")
    clock.now += 1
    revoked, bad = store.create("b")
    assert store.revoke(revoked.id)
    moment = store.list_keys()[1].revoked_at
    clock.now += 5
    assert store.revoke(revoked.id)  # asking twice is asking once
    assert store.authenticate(bad) is None
    assert store.authenticate(good).id == kept.id
    assert [(key.id, key.revoked_at) for key in store.list_keys()] == [(kept.id, None), (revoked.id, moment)]
    assert moment.timestamp() == clock.now - 5
    assert not store.revoke("0" * 16)


def test_revoking_the_last_key_does_not_count_as_having_none(store):
    assert not store.is_configured()
    key, _ = store.create("camera")
    assert store.is_configured()
    store.revoke(key.id)
    assert store.is_configured()
    assert store.forget(key.id)
    assert not store.is_configured()
    assert store.list_keys() == []


def test_only_a_revoked_key_is_forgotten(store):
    key, secret = store.create("camera")
    assert not store.forget(key.id)
    assert not store.forget("0" * 16)
    assert store.authenticate(secret)


def test_use_is_noted_once_a_minute(store, clock):
    key, secret = store.create("camera")
    assert store.list_keys() == [key]
    first = clock.now
    for seconds in (0, 59, 1):
        clock.now += seconds
        store.authenticate(secret)
        told = store.list_keys()[0].last_used_at.timestamp()
        assert told == (first if clock.now - first < 60 else clock.now)


@pytest.mark.parametrize("name", ["", " ", "a" * 101, " camera", "two\nlines"])
def test_a_name_says_something(store, name):
    with pytest.raises(ValueError, match="name"):
        store.create(name)


def test_a_limit_is_not_negative(store):
    with pytest.raises(ValueError, match="requests_per_minute"):
        store.create("camera", requests_per_minute=-1)
