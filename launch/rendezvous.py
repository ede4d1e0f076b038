"""The nodes of a job meet before anything is trained: who is missing is named, who differs refused.

The first node listens at a port that follows from the job's id, or the next that is free. The
others try the same ports in turn until one greets them in the name of their job, and tell what they
are. When all are there each gets the same answer: the port to train with, or what is wrong.
"""

import json
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any

from shards.errors import TrainingError, UserError
from toolkit.world import Allocation

FIRST, SPAN, TRIES = 20000, 10000, 50  #: ports, below those the kernel hands out to connections
Facts = Mapping[str, Any]  #: what a node says of itself


def ports(job: int) -> list[int]:
    """The ports of a job, in the order in which they are tried."""
    return [FIRST + (job + step) % SPAN for step in range(TRIES)]


def listen(job: int, taken: Sequence[int] = ()) -> socket.socket:
    """A socket at the first port of the job that is free, and not among those `taken`."""
    for port in ports(job):
        with suppress(OSError):
            if port not in taken:
                return socket.create_server(("", port))
    first, *_, last = ports(job)
    raise TrainingError(f"no free port among {first} .. {last} on {socket.gethostname()}")


def free_port(job: int, taken: Sequence[int] = ()) -> int:
    """The first port of the job that nobody listens at."""
    with listen(job, taken) as found:
        return found.getsockname()[1]


def meet(here: Allocation, facts: Facts, timeout: float) -> int:
    """Wait, at most `timeout` (s), until all nodes are there; the port of the training's own store.

    Raises:
        TrainingError: a node did not come, or the first one cannot be reached.
        UserError: the nodes do not fit together.
    """
    if len(here.names) == 1:
        return free_port(here.job)
    answer = (gather if here.node == 0 else join)(here, facts, timeout)
    if answer["error"]:
        raise UserError(answer["error"])
    return answer["port"]


def gather(here: Allocation, facts: Facts, timeout: float) -> dict[str, Any]:
    """The first node's part: hear all others, then answer them."""
    deadline, heard = time.monotonic() + timeout, {0: facts}
    with ExitStack() as stack:
        server = stack.enter_context(listen(here.job))
        own = server.getsockname()[1]
        callers = []
        while len(heard) < len(here.names):
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                caller = stack.enter_context(closing(server.accept()[0]))
                caller.settimeout(5)
                send(caller, {"job": name(here)})
                told = receive(caller)
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue  # a caller that says nothing is none of ours
                raise TrainingError(missing(here, heard, own, timeout)) from None
            except (OSError, ValueError):
                continue
            heard[told["node"]] = told
            callers.append(caller)
        port = free_port(here.job, [own])
        answer = {"port": port, "error": difference(here.names, heard)}
        for caller in callers:
            with suppress(OSError):
                send(caller, answer)
    return answer


def join(here: Allocation, facts: Facts, timeout: float) -> dict[str, Any]:
    """Another node's part: find the first one, tell, and hear its answer."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for port in ports(here.job):
            try:
                with socket.create_connection((here.address, port), timeout=2) as caller:
                    if receive(caller) != {"job": name(here)}:
                        continue
                    send(caller, dict(facts, node=here.node))
                    caller.settimeout(max(1, deadline - time.monotonic()) + 5)
                    return receive(caller)
            except (OSError, ValueError):
                continue
        time.sleep(0.2)
    raise TrainingError(
        f"{here.names[here.node]}: no answer from the first node, {here.names[0]}, at "
        f"{here.address}, ports {ports(here.job)[0]} and up, in {timeout:.0f} s"
    )


def name(here: Allocation) -> str:
    """One life of a job; an earlier one may still be ending."""
    return f"{here.job}.{here.restart}"


def send(to: socket.socket, message: Facts) -> None:
    """One line of JSON."""
    to.sendall(json.dumps(message).encode() + b"\n")


def receive(caller: socket.socket) -> dict[str, Any]:
    """One line of JSON; ValueError if it is none, or something else listens there."""
    with caller.makefile("rb") as lines:
        found = json.loads(lines.readline(10000))
    if not isinstance(found, dict):
        raise ValueError("not ours")
    return found


def missing(here: Allocation, heard: Mapping[int, Facts], port: int, timeout: float) -> str:
    """Which nodes did not come."""
    who = [f"{name} (node {n})" for n, name in enumerate(here.names) if n not in heard]
    return (
        f"{', '.join(who)} of {len(here.names)} nodes did not come to {here.address}:{port} in "
        f"{timeout:.0f} s; sinfo tells more, --sbatch=--exclude={who[0].split()[0]} does without"
    )


def difference(names: Sequence[str], heard: Mapping[int, Facts]) -> str | None:
    """What the nodes disagree in, or None."""
    for key, value in heard[0].items():
        found = {names[n]: facts.get(key) for n, facts in sorted(heard.items())}
        if key != "host" and any(other != value for other in found.values()):
            told = ", ".join(f"{node}: {other}" for node, other in found.items())
            return f"the nodes of this job differ in {key} ({told}); ask for nodes of one kind"
    return None
