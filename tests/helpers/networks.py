"""Two hosts, as two network namespaces joined by a cable that can be cut."""

import ctypes
import os
import subprocess

ADDRESSES = ("10.99.0.1", "10.99.0.2")
_CLONE_NEWNET = 0x40000000  # of linux/sched.h


def ip(*arguments: object) -> None:
    subprocess.run(["ip", *map(str, arguments)], check=True, capture_output=True, text=True)


class Hosts:
    """The ends of the cable have the `ADDRESSES`."""

    def __init__(self) -> None:
        self.names = [f"ssd-test-{os.getpid()}-{i}" for i in range(2)]

    def make(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        first, second = self.names
        ip("-n", first, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", second)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                ip("-n", name, "link", "set", link, "up")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def set_cable(self, state: str) -> None:
        ip("-n", self.names[1], "link", "set", "cable", state)


def enter(name: str) -> None:
    """Has this process, and what it will start, see the network of this namespace alone."""
    with open(f"/run/netns/{name}") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network {name}")
