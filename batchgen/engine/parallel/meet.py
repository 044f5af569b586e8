"""From a team to the groups its ranks compute in."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import torch
import torch.distributed as dist

from batchgen.config.degrees import Degrees
from batchgen.engine.parallel.mesh import Mesh, join
from batchgen.engine.ranks.team import Team

_SIOCGIFADDR = 0x8915  # of netdevice(7): the address of an interface


def meet(team: Team, degrees: Degrees, device: torch.device) -> Mesh | None:
    """The mesh of a team's ranks, None for a rank alone. The leader opens a store on whichever port
    is free and tells the others where. ReplicaFailed if one of them does not come."""
    if team.size == 1:
        return None
    timeout, stores = timedelta(seconds=team.patience_s), list[Any]()

    def open_store() -> tuple[str, int]:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            team.address, 0, team.size, is_master=True, timeout=timeout, wait_for_workers=False
        )
        stores.append(store)
        return team.address, store.port

    host, port = team.result(open_store)
    if not team.leads:
        others = dist.TCPStore(host, port, team.size, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
        stores.append(others)
    _speak_on(interface_of(team.address))
    with team.together(lambda: "before its first forward"):
        return join(degrees, team.rank, stores[0], device, timeout)


def _speak_on(interface: str) -> None:
    """Have gloo use this network, where the ranks have met, unless the environment names another.
    By itself it takes what the node's own name means there, which may reach no other node."""
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def interface_of(address: str) -> str:
    """The network interface of this machine that has an IPv4 address; empty if none has, or if it
    leads nowhere else."""
    if ip_address(address).is_loopback:
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # has no address
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return ""
