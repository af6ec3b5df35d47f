"""Which of this machine's addresses and interfaces lead to the others."""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import sys
from pathlib import Path

LOOPBACK = "127.0.0.1"

_SIOCGIFADDR = 0x8915


def is_own_address(address: str) -> bool:
    """Whether an address is this machine's: only then can something be bound to it."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True


def address_towards(address: str) -> str | None:
    """The address under which this machine is seen from `address`; None if that is unknown. Sends nothing."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def interface_towards(address: str) -> str | None:
    """The network interface through which `address` is reached, on Linux and for IPv4; None if it is unknown."""
    own = address_towards(address)
    if own is None or sys.platform != "linux":
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # an interface without an address
                if socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24]) == own:
                    return name
    return None


def lasting_port() -> int:
    """A free port of this machine that will still be free in a while: not one that connections are given."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first = 32768
    for port in [secrets.randbelow(10_000) + first - 10_000 for _ in range(50)]:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
