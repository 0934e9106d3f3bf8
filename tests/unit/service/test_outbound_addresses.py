"""Where requests for callers may go: a table of addresses and URLs, each once used to reach what is not public."""

import asyncio
import ipaddress
import socket

import pytest

from service.outbound import BlockedUrl, Guard, UnresolvedName
from service.outbound.addresses import may_reach
from service.outbound.guard import look_up

PUBLIC = ("8.8.8.8", "93.184.215.14", "100.63.255.255", "172.32.0.1", "192.169.0.1", "2606:4700::1111", "2a00:1450::1")
PUBLIC_INSIDE = ("::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2a00:1450::5efe:808:808")
ON_PREMISES = (
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255"),
    *("127.0.0.1", "127.255.255.254", "::1", "fc00::1", "fd12:3456::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a00:1", "64:ff9b::192.168.1.1", "64:ff9b::7f00:1"),
)
NEVER = (
    *("0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.0.1", "100.100.100.200", "168.63.129.16"),
    *("192.0.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1"),
    *("192.88.99.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("::", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1", "100::1", "2001:db8::1", "fd00:ec2::254"),
    *("::127.0.0.1", "::8.8.8.8", "::ffff:0.0.0.0", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"),
    *("2002:7f00:1::1", "2002:808:808::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "64:ff9b:1::a00:1"),
    *(
        "2a00:1450::5efe:7f00:1",
        "2a00:1450::200:5efe:a00:1",
        "fe80::5efe:808:808",
        "5f00::1",
        "4000::1",
        "::ffff:0:7f00:1",
    ),
    *("", "localhost", "2130706433", "127.1", "0x7f000001"),
)
URLS = {
    "https://hooks.test/path?query#part": None,
    "https://hooks.test:8443/": None,
    "HTTPS://Hooks.Test": None,
    "https://8.8.8.8/": None,
    "https://[2606:4700::1111]:1024/": None,
    "https://bücher.test/": None,
    "http://hooks.test/": "https",
    "ftp://hooks.test/": "https",
    "file:///etc/passwd": "https|URL",
    "gopher://127.0.0.1:6379/_FLUSHALL": "https",
    "//hooks.test/": "https",
    "hooks.test": "https",
    "": "https",
    "https://": "host",
    "https:///path": "host",
    "https://user@hooks.test/": "name or password",
    "https://user:secret@hooks.test/": "name or password",
    "https://@hooks.test/": "name or password",
    "https://8.8.8.8@127.0.0.1/": "name or password",
    "https://hooks.test:0/": "port",
    "https://hooks.test:22/": "port",
    "https://hooks.test:25/": "port",
    "https://hooks.test:1023/": "port",
    "https://hooks.test:65536/": "URL|port",
    "https://hooks.test:-1/": "URL|port",
    "https://hooks.test:port/": "URL",
    "https://hooks.test\\@127.0.0.1/": "backslashes",
    "https://hooks.test/ path": "blanks",
    "https://hooks.test/\r\nHost: localhost": "blanks",
    "https://hooks.test\x00.evil.test/": "control",
    "https://2130706433/": "plain IP",
    "https://017700000001/": "plain IP",
    "https://0x7f000001/": "plain IP",
    "https://0x7f.1/": "plain IP",
    "https://127.1/": "plain IP",
    "https://0177.0.0.1/": "plain IP|URL",
    "https://127.0.0.1./": "plain IP",
    "https://127.0.0.0x1/": "plain IP",
    "https://1.2.3.4.5/": "plain IP",
    "https://hooks..test/": "plain IP|URL",
    "https://-hooks.test/": "plain IP|URL",
    "https://127%2e0.0.1/": "plain IP|URL",
    "https://①②⑦.⓪.⓪.①/": "plain IP|URL",
    "https://[fe80::1%25eth0]/": "plain IP|URL|port",
    "https://[::1/": "URL",
    f"https://{'a' * 64}.test/": "plain IP|URL",
}


@pytest.mark.parametrize("address", [*PUBLIC, *PUBLIC_INSIDE])
def test_public_addresses_are_reached(address):
    assert may_reach(address, allow_private=False)
    assert may_reach(address, allow_private=True)


@pytest.mark.parametrize("address", ON_PREMISES)
def test_addresses_on_premises_are_reached_only_when_that_is_allowed(address):
    assert not may_reach(address, allow_private=False)
    assert may_reach(address, allow_private=True)


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_never_reached(address):
    assert not may_reach(address, allow_private=False)
    assert not may_reach(address, allow_private=True)


def test_what_the_standard_library_calls_private_is_none_of_ours():
    """A second opinion on thousands of addresses, public ones of IPv6 in the form 2xxx: apart."""
    for number in range(0, 2**32, 2**32 // 20_011):
        address = ipaddress.IPv4Address(number)
        if may_reach(str(address), allow_private=False):
            assert address.is_global and not address.is_multicast, address
    for number in range(0, 2**128, 2**128 // 20_011):
        v6 = ipaddress.IPv6Address(number)
        if may_reach(str(v6), allow_private=False):
            assert v6.is_global and not v6.is_multicast, v6


@pytest.mark.parametrize(("url", "fault"), URLS.items())
def test_a_url_is_taken_or_refused_with_its_reason(url, fault):
    guard = Guard()
    if fault is None:
        assert guard.parse(url).scheme == "https"
    else:
        with pytest.raises(BlockedUrl, match=fault):
            guard.parse(url)


def test_plain_http_is_a_matter_of_a_setting():
    assert Guard(allow_http=True).parse("http://hooks.test/").scheme == "http"


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost", "0"])
def test_names_that_the_system_takes_for_this_machine_are_refused_by_their_address_too(host):
    """The second line: were the notation let through, the address would still be looked at."""
    try:
        addresses = look_up(host, 443)
    except socket.gaierror:
        pytest.skip("this system does not take the notation")
    assert not all(may_reach(address, allow_private=False) for address in addresses)


@pytest.mark.parametrize(
    "found", [["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["2606:4700::1111", "::1"], ["8.8.8.8", "fe80::1%2"]]
)
def test_one_address_that_may_not_be_reached_spoils_the_others(found):
    guard = Guard(lookup=lambda name, port: found)
    with pytest.raises(BlockedUrl):
        asyncio.run(guard.addresses(guard.parse("https://hooks.test/")))


def test_a_name_without_address_is_told_as_such():
    def lookup(name, port):
        raise socket.gaierror("no such name")

    for guard in (Guard(lookup=lookup), Guard(lookup=lambda name, port: [])):
        with pytest.raises(UnresolvedName):
            asyncio.run(guard.addresses(guard.parse("https://hooks.test/")))
