"""Ports that are given to services before they start."""

import socket

import pytest

from prism.stack import ports
from prism.stack.ports import free_port


def test_no_outgoing_connection_takes_a_port_that_was_given() -> None:
    with open("/proc/sys/net/ipv4/ip_local_port_range") as given:
        lowest_outgoing = int(given.read().split()[0])
    assert lowest_outgoing > ports.HIGHEST + 10
    assert all(ports.LOWEST <= free_port() < ports.HIGHEST for _ in range(20))


def test_ports_in_a_row_are_all_free_and_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_given", set())
    first = free_port(in_a_row=3)
    monkeypatch.setattr(ports, "LOWEST", first)
    monkeypatch.setattr(ports, "HIGHEST", first + 3)
    with pytest.raises(OSError, match="no 1 free ports"):
        free_port()
    ports._given.clear()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 1))
        taken.listen()
        assert {free_port(), free_port()} == {first, first + 2}
        with pytest.raises(OSError, match="no 2 free ports in a row"):
            free_port(in_a_row=2)
