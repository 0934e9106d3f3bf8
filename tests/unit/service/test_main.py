"""Binding: who may reach the service, and what a taken port says."""

import json
import logging
import socket

import pytest
import structlog

from jobs import KeyStore, Settings, configure_logs, connect
from service.access import is_loopback
from service.main import check_address, listen
from tests.conftest import free_port


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host, is_local):
    assert is_loopback(host) is is_local


def test_without_keys_an_open_address_is_refused_unless_allowed(redis):
    api_keys = KeyStore(redis)
    with pytest.raises(SystemExit, match="M3ESR_ALLOW_ANONYMOUS"):
        check_address(Settings(host="0.0.0.0"), api_keys)
    check_address(Settings(host="0.0.0.0", allow_anonymous=True), api_keys)
    check_address(Settings(), api_keys)


def test_with_keys_an_open_address_is_allowed_also_after_the_last_was_revoked(redis):
    api_keys = KeyStore(redis)
    key, _ = api_keys.create("camera")
    check_address(Settings(host="0.0.0.0"), api_keys)
    api_keys.revoke(key.id)
    check_address(Settings(host="0.0.0.0"), api_keys)
    api_keys.forget(key.id)
    with pytest.raises(SystemExit, match="m3esr keys create"):
        check_address(Settings(host="0.0.0.0"), api_keys)


def test_while_redis_is_away_an_open_address_is_taken():
    check_address(Settings(host="0.0.0.0"), KeyStore(connect(f"redis://127.0.0.1:{free_port()}/0")))


def test_a_taken_port_is_one_clear_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"Cannot listen on 127.0.0.1:{port}.*M3ESR_PORT"):
            listen("127.0.0.1", port)


def test_logs_are_json_lines_with_what_is_bound(capfd):
    handlers = logging.getLogger().handlers[:]
    configure_logs("info")
    try:
        with structlog.contextvars.bound_contextvars(job_id="abc"):
            structlog.get_logger().info("job_accepted", width=3)
            structlog.get_logger().debug("unheard")
        for name in ("httpx", "httpcore.http11"):
            logging.getLogger(name).info("POST https://hooks.test/?key=hidden")  # as they do for every request
    finally:
        structlog.reset_defaults()
        logging.getLogger().handlers[:] = handlers
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line["event"], line["job_id"], line["width"]) for line in lines] == [("job_accepted", "abc", 3)]
