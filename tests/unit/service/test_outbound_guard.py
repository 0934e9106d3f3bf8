"""The connection goes to the address that was checked, and to no other."""

import asyncio
import ssl
import subprocess
import threading
import time

import httpx
import pytest

from service.outbound import BlockedUrl, Guard, UnresolvedName, open_client
from service.outbound import guard as guard_module
from tests.receivers import receiving

OPEN = {"allow_http": True, "allow_private": True}

TLS = ssl.create_default_context()


def post(guard: Guard, url: str, tls: ssl.SSLContext = TLS) -> int:
    async def send() -> int:
        async with open_client(guard, tls, 5) as client:
            return (await client.post(url, content=b"{}")).status_code

    return asyncio.run(send())


class ChangingDns:
    """Answers one list of addresses after the other, then the last for ever."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), 0

    def __call__(self, name, port):
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def test_the_second_answer_of_a_rebinding_name_is_never_connected_to():
    """Public when it is screened, this machine when it is sent: the receiver must see no connection."""
    dns = ChangingDns(["93.184.215.14"], ["127.0.0.1"])
    guard = Guard(allow_http=True, lookup=dns)
    with receiving() as receiver:
        url = f"http://rebind.test:{receiver.port}/"
        assert asyncio.run(guard.addresses(guard.parse(url))) == ["93.184.215.14"]
        with pytest.raises(BlockedUrl):
            post(guard, url)
        assert receiver.num_connections == 0


def test_the_name_is_asked_once_for_each_delivery_so_nothing_can_change_between_check_and_connection():
    with receiving() as checked, receiving() as other:
        dns = ChangingDns(["127.0.0.1"], ["127.0.0.2"])
        assert post(Guard(**OPEN, lookup=dns), f"http://rebind.test:{checked.port}/hook") == 204
        assert (dns.asked, checked.num_connections, other.num_connections) == (1, 1, 0)
        assert checked.requests[0][1]["Host"] == f"rebind.test:{checked.port}"


def test_an_address_that_does_not_answer_is_followed_by_the_next():
    with receiving() as receiver:
        guard = Guard(**OPEN, lookup=lambda name, port: ["127.9.9.9", "127.0.0.1"])
        assert post(guard, f"http://hooks.test:{receiver.port}/") == 204


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for hooks.test and its key, as files."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=hooks.test", "-addext", "subjectAltName=DNS:hooks.test"]
    try:
        subprocess.run(
            [*command, "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("needs the openssl command to make a certificate")
    return folder / "cert.pem", folder / "key.pem"


def test_the_certificate_is_held_to_the_name_though_an_address_is_connected_to(certificate):
    names = []
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*certificate)
    server_side.sni_callback = lambda sock, name, context: names.append(name)
    trusted = ssl.create_default_context(cafile=certificate[0])
    guard = Guard(**OPEN, lookup=lambda name, port: ["127.0.0.1"])
    with receiving(server_side) as receiver:
        assert post(guard, f"https://hooks.test:{receiver.port}/", trusted) == 204
        assert receiver.requests[0][1]["Host"] == f"hooks.test:{receiver.port}"
        for url in (f"https://other.test:{receiver.port}/", f"https://127.0.0.1:{receiver.port}/"):
            with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
                post(guard, url, trusted)
        assert len(receiver.requests) == 1
    assert names[:2] == ["hooks.test", "other.test"]


def test_lookups_that_hang_are_bounded_in_time_and_number(monkeypatch):
    monkeypatch.setattr(guard_module, "LOOKUP_SECONDS", 0.2)
    monkeypatch.setattr(guard_module, "MAX_LOOKUPS_AT_ONCE", 2)
    go_on, num_started = threading.Event(), []

    def lookup(name, port):
        num_started.append(name)
        go_on.wait(30)
        return ["8.8.8.8"]

    async def ask_often() -> list[BaseException]:
        guard = Guard(lookup=lookup)
        url = guard.parse("https://slow.test/")
        return await asyncio.gather(*(guard.addresses(url) for _ in range(6)), return_exceptions=True)

    started = time.monotonic()
    answers = asyncio.run(ask_often())
    seconds = time.monotonic() - started
    go_on.set()
    assert [type(answer) for answer in answers] == [UnresolvedName] * 6
    assert len(num_started) == 2
    assert seconds < 5
