"""Nodes that meet over real sockets, or do not; and what each of them starts."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch import node, rendezvous
from launch.rendezvous import free_port, meet, ports
from shards.errors import TrainingError, UserError
from toolkit import world
from toolkit.world import Allocation

NAMES = ["n1", "n2", "n3"]
FACTS = {"gpus": 4, "tasks": 3}


def here(number: int, job: int = 4711, **other: Any) -> Allocation:
    values: dict[str, Any] = {"restart": 0, "names": NAMES, "tasks": 3, "gpus": 4}
    values |= {"address": "127.0.0.1", **other}
    return Allocation(job=job, node=number, **values)


def all_meet(*nodes: Allocation, facts: Any = None, timeout: float = 20) -> list[Any]:
    """What `meet` returns or raises on each of them."""

    def one(allocation: Allocation) -> Any:
        try:
            told = {
                **FACTS,
                "host": f"h{allocation.node}",
                **(facts or {}).get(allocation.node, {}),
            }
            return meet(allocation, told, timeout)
        except (TrainingError, UserError) as error:
            return error

    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(one, nodes))


@pytest.fixture
def job() -> int:
    """A job whose first ports are free, found by the kernel's choice of one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_all_nodes_hear_of_one_port(job: int) -> None:
    found = all_meet(*(here(number, job) for number in (2, 0, 1)))
    assert len(set(found)) == 1 and found[0] in ports(job)
    with socket.create_server(("", found[0])):
        pass  # and it is free


def test_two_jobs_whose_ports_clash(job: int) -> None:
    """One id plus all ports is the same first port; each node finds its own first node."""
    nodes = [here(n, j) for j in (job, job + rendezvous.SPAN) for n in range(3)]
    assert ports(job) == ports(job + rendezvous.SPAN)
    found = all_meet(*nodes)
    assert len(set(found[:3])) == len(set(found[3:])) == 1


def test_a_port_that_is_taken_by_somebody_else(job: int) -> None:
    with socket.create_server(("", ports(job)[0])):
        assert free_port(job) == ports(job)[1]
        found = all_meet(*(here(number, job) for number in range(3)))
    assert len(set(found)) == 1 and found[0] in ports(job)[1:]


def test_an_earlier_life_of_the_job_is_not_answered(job: int) -> None:
    found = all_meet(here(0, job), here(1, job), here(2, job, restart=1), timeout=1.5)
    assert "n3 (node 2) of 3 nodes did not come" in str(found[0])
    assert "n3: no answer from the first node, n1, at 127.0.0.1" in str(found[2])


def test_a_node_that_differs_is_refused_on_all(job: int) -> None:
    nodes = [here(number, job) for number in range(3)]
    found = all_meet(*nodes, facts={1: {"gpus": 2}})
    assert {type(error) for error in found} == {UserError}
    assert "differ in gpus (n1: 4, n2: 2, n3: 4)" in str(found[0]) == str(found[2])


def test_what_was_asked_for_is_what_is_there() -> None:
    node.check(here(0), 3, 4)
    for allocation, message in (
        (replace(here(0), tasks=6), "Slurm gave 3 nodes and 6 tasks"),
        (replace(here(1), names=["n1", "n2"]), "asked for 3 nodes"),
        (replace(here(1), gpus=3), "n2: asked for 4 GPUs a node, and 3 are to be seen"),
    ):
        with pytest.raises(UserError, match=message):
            node.check(allocation, 3, 4)
    node.check(replace(here(0), gpus=8), 3, 0)  # others may have the GPUs


@pytest.mark.parametrize(
    "nodes, gpus, strategy, file",
    [
        (1, 0, "ddp", "cpu"), (2, 0, "ddp", "cpu_2"), (1, 1, "ddp", "gpu_1"),
        (1, 8, "ddp", "gpu_n"), (2, 1, "ddp", "multinode"), (4, 8, "fsdp", "fsdp"),
        (1, 2, "zero3", "deepspeed_zero3"),
    ],
)  # fmt: skip
def test_the_launch_file_follows_from_the_shape(nodes, gpus, strategy, file):
    found = node.launch_file(nodes, gpus, strategy)
    assert found.is_file() and found.stem == file


def test_what_each_node_starts() -> None:
    """One process needs no launcher, which would die of the signal; of several each node one."""
    allocation = here(1)
    assert node.launcher(node.launch_file(1, 1, "ddp"), allocation, 1, 1, 29000) == []
    words = node.launcher(node.launch_file(3, 4, "zero2"), allocation, 3, 4, 29000)
    assert {"--num_processes=12", "--num_machines=3", "--machine_rank=1"} <= set(words)
    assert {"--main_process_ip=127.0.0.1", "--main_process_port=29000"} <= set(words)
    assert "--deepspeed_multinode_launcher=standard" in words
    single = node.launch_file(1, 1, "ddp")
    assert node.environment(single, 1, 1) == {"ACCELERATE_MIXED_PRECISION": "bf16"}
    assert node.environment(single, 1, 0)["CUDA_VISIBLE_DEVICES"] == "-1"


def test_slurm_is_read_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2", "SLURM_NODEID": "1",
        "SLURM_NTASKS": "2", "SLURMD_NODENAME": "n2", "WAVEFOLD_NODES": "n1 n2",
        "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1", "CUDA_VISIBLE_DEVICES": "0,GPU-1",
    }  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert world.allocation() == Allocation(
        job=12, restart=2, node=1, names=["n1", "n2"], tasks=2, gpus=2, address="10.0.0.1"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert world.visible_gpus() == []


def driver(tmp_path: Any) -> Callable[[str], None]:
    """An nvidia-smi that says something."""

    def say(text: str) -> None:
        file = tmp_path / "nvidia-smi"
        file.write_text(f"#!/bin/sh\nprintf '{text}'\n")
        file.chmod(0o755)

    return say


def test_gpus_without_slurms_word_are_the_drivers(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert world.visible_gpus() == []
    driver(tmp_path)("GPU 0: H100 (UUID: x)\\nGPU 1: H100 (UUID: y)\\n")
    assert world.visible_gpus() == ["0", "1"]


def test_a_later_life_does_not_start_over_again(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"run: {{name: x, dir: {tmp_path}}}\ndata: {{shards: y}}\nmodel: {{name: cnn_tiny}}\n"
    )
    words = str(config), ["--train.resume=never"], 4711
    assert not node.began(*words)
    note = tmp_path / "x" / "environment.json"
    note.parent.mkdir()
    for text, begun in (
        ("{}", False),
        ('{"slurm": {"SLURM_JOB_ID": "12"}}', False),
        ('{"slurm": {"SLURM_JOB_ID": "4711"}}', True),
    ):
        note.write_text(text)
        assert node.began(*words) is begun
