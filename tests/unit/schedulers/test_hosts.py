from __future__ import annotations

from firstkit.schedulers.hosts import Host, sum_of

GIB = 1024**3


def host(cpus: int, gpus: int, memory_bytes: int) -> Host:
    return Host(True, cpus, cpus, gpus, gpus, memory_bytes, memory_bytes)


def least(*hosts: Host) -> tuple[int, int, int]:
    found = sum_of(hosts)
    return found.least_cpus, found.least_gpus, found.least_memory_bytes


def test_the_least_that_nodes_have() -> None:
    nodes = [host(64, 4, 500), host(32, 8, 1000), host(128, 0, 100)]
    assert least(*nodes) == (32, 4, 500)
    assert least(host(128, 0, 100)) == (128, 0, 100)
    assert least() == (0, 0, 0)


def test_hosts_are_added_up() -> None:
    busy = Host(False, 32, 8, 4, 1, 64 * GIB, 16 * GIB)
    found = sum_of([busy, host(32, 4, 64 * GIB)], "gpu", "a100")
    assert (found.nodes, found.cpus, found.gpus, found.memory_bytes) == (2, 64, 8, 128 * GIB)
    assert (found.free_nodes, found.free_cpus, found.free_gpus, found.free_memory_bytes) == (1, 40, 5, 80 * GIB)
    assert (found.partition, found.constraint) == ("gpu", "a100")
