"""Finding this machine's place in a network, without a name service."""

from __future__ import annotations

import socket
from pathlib import Path

from flambeau.launch.network import address_towards, interface_towards, is_own_address, lasting_port


def test_an_address_is_ours_if_something_can_be_bound_to_it() -> None:
    assert is_own_address("127.0.0.1") and is_own_address("localhost") and is_own_address("::1")
    assert not is_own_address("192.0.2.77") and not is_own_address("no such name.invalid")


def test_the_interface_that_leads_to_an_address() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert interface_towards("127.0.0.1") == "lo"
    assert address_towards("no such name.invalid") is None and interface_towards("no such name.invalid") is None


def test_a_lasting_port_is_none_that_a_connection_gets() -> None:
    """The kernel gives those of its range to whoever asks; the others only to who names them."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {lasting_port() for _ in range(20)}
    assert len(ports) > 10 and all(1024 < port < first for port in ports)
    with socket.socket() as listener:
        listener.bind(("", ports.pop()))
