"""Which IP addresses a request that a caller asked for may be sent to."""

import ipaddress
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# Lists of our own, from IANA's registries of special addresses: what the standard library calls global or private
# differs between releases of Python.
_ON_PREMISES = _networks(
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # private
    "100.64.0.0/10",  # shared by carriers
    "127.0.0.0/8",  # loopback
    *("::1/128", "fc00::/7"),
)
# Nobody's server lives there, whatever is allowed: above all not the metadata of a cloud, which hands out keys.
_NEVER = _networks(
    "0.0.0.0/8",  # "this network": connecting there reaches this machine
    "169.254.0.0/16",  # link-local; 169.254.169.254 is the metadata of most clouds
    *("100.100.100.200/32", "168.63.129.16/32", "fd00:ec2::254/128"),  # metadata of three more
    *("192.0.0.0/24", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),  # protocols, documentation
    *("192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24"),  # anycast of protocols
    "198.18.0.0/15",  # benchmarks
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
    *("2001::/23", "2001:db8::/32", "3fff::/20"),  # protocols (Teredo is 2001::/32), documentation
    "2002::/16",  # 6to4: an IPv4 address inside
    "2620:4f:8000::/48",
)
# All of IPv6 that is handed out to anybody; beyond it lie link-local, multicast, the discard prefix and the like.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# The middle of an ISATAP address, whose last 32 bits are an IPv4 address in any prefix.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def may_reach(text: str, *, allow_private: bool) -> bool:
    """Whether a request may be sent to the address `text`; what is no plain IP address may not be reached."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return _may_reach_v6(address, allow_private)
    return not _is_in(address, _NEVER) and (allow_private or not _is_in(address, _ON_PREMISES))


def _may_reach_v6(address: ipaddress.IPv6Address, allow_private: bool) -> bool:
    if address.scope_id is not None or _is_in(address, _NEVER):
        return False
    last_four = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address in _MAPPED or address in _NAT64:  # both end at the IPv4 address
        return may_reach(str(last_four), allow_private=allow_private)
    if _is_in(address, _ON_PREMISES):
        return allow_private
    if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP and not may_reach(str(last_four), allow_private=False):
        return False
    return address in _GLOBAL_V6


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)
