"""Ranks that hang, stop or die: who is said to hold up whom, and that nothing is left running."""

import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest
import torch.distributed as dist
from processes import held_port, on_ranks

from toolkit import watch
from toolkit.watch import Place, at, ending_together, sentence
from toolkit.world import start


def test_the_sentence_names_those_behind_first():
    there = {rank: Place(900, "train, step", 801) for rank in range(8)}
    behind = {**there, 3: Place(880, "evaluate, batch", 12)}
    assert sentence(behind, set(), 8) == "rank 3: evaluate, batch 12; others: train, step 801"
    assert sentence(there, set(), 8) == "all ranks: train, step 801"
    assert sentence({0: there[0], 1: behind[3]}, set(), 2) == (
        "rank 1: evaluate, batch 12; rank 0: train, step 801"
    )
    assert sentence({0: there[0]}, set(), 1) == "train, step 801"
    lost = sentence({0: there[0], 1: there[1]}, {2}, 3)
    assert lost == "rank 2: start (no sign of it); others: train, step 801"


def hang_here():
    time.sleep(1000)


TROUBLE = {
    "hangs": hang_here,
    "stops": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raises": lambda: 1 // 0,
    "starves": lambda: bytearray(1 << 62),
    "interrupted": lambda: os.kill(os.getpid(), signal.SIGINT),
}


def one_rank(rank, size, port, troubled, trouble, log, timeout):
    """A training of two steps; in the second one a rank is in trouble."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    watch.STALL, watch.LOOK_EVERY, watch.LISTEN = 3.0, 0.1, 1
    watch.log.warning = lambda *words: print(words[0] % words[1:], file=sys.stderr)
    watches, begin = [], watch.Watch.start
    watch.Watch.start = lambda self: (watches.append(self), begin(self))
    start("no", 1, timeout)
    with ending_together(timeout):
        for step in (1, 2):
            at("train, step", step)
            others = set(range(size)) - {rank}
            while {r for r, (_, p) in [*watches[0].heard.items()] if p.number == step} != others:
                time.sleep(0.02)
            if size > 1:
                dist.barrier()  # all have heard of all
            if rank == troubled and step == 2:
                TROUBLE[trouble]()
            at("collective of step", step)
            if size > 1:
                dist.barrier()


class Launch:
    """A training with a rank in trouble, and what became of it."""

    def __init__(self, log, size, troubled, trouble, timeout=8.0):
        context = multiprocessing.get_context("fork")
        self.log, self.stopped = log, troubled if trouble == "stops" else None
        with held_port() as held:
            words = (size, held.getsockname()[1], troubled, trouble, log, timeout)
            self.ranks = [context.Process(target=one_rank, args=(n, *words)) for n in range(size)]
            for process in self.ranks:
                process.start()

    def end(self):
        """Exit codes of the ranks, None for one that was stopped; what they said."""
        for rank, process in enumerate(self.ranks):
            if rank != self.stopped:
                process.join(40)
        return [process.exitcode for process in self.ranks], self.log.read_text()


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What became of each, at the same time."""
    logs = tmp_path_factory.mktemp("logs")
    launches = {
        "hangs": Launch(logs / "hangs", 3, 1, "hangs"),
        "alone": Launch(logs / "alone", 1, 0, "hangs"),
        "stops": Launch(logs / "stops", 2, 0, "stops"),  # rank 0 holds the store
        "dies": Launch(logs / "dies", 2, 1, "dies", timeout=600.0),
        "raises": Launch(logs / "raises", 2, 1, "raises", timeout=600.0),
        "starves": Launch(logs / "starves", 2, 1, "starves", timeout=600.0),
        "interrupted": Launch(logs / "interrupted", 2, 1, "interrupted", timeout=600.0),
    }
    try:
        yield {name: launch.end() for name, launch in launches.items()}
    finally:
        for process in (rank for launch in launches.values() for rank in launch.ranks):
            process.kill()
            process.join()


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_its_stack_and_all_end(launched):
    codes, said = launched["hangs"]
    assert codes == [1, 1, 1]
    where = "rank 1: train, step 2; others: collective of step 2"
    assert said.count(f"no progress for 3 s: {where}\n") == 1
    assert "rank 1 stands here:" in said and "in hang_here" in said
    assert said.count("stands here") == 1
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: no progress for 8 s, train.timeout=8: {where}"]
    assert "Traceback" not in said


def test_a_process_alone_is_watched_too(launched):
    codes, said = launched["alone"]
    assert codes == [1]
    assert "no progress for 3 s: train, step 2\n" in said and "in hang_here" in said
    assert "error: no progress for 8 s, train.timeout=8: train, step 2\n" in said


def test_a_rank_that_is_stopped_gives_no_sign_and_the_other_ends(launched):
    codes, said = launched["stops"]
    assert codes == [None, 1]
    assert "rank 0: train, step 2 (no sign of it); rank 1: collective of step 2" in said
    assert said.count("error: ") == 1 and "train.timeout=8" in said and "stands" not in said


@pytest.mark.parametrize(
    "trouble, code", [("dies", -9), ("raises", 1), ("starves", 1), ("interrupted", 1)]
)
def test_a_rank_that_dies_takes_the_other_along_at_once(launched, trouble, code):
    codes, said = launched[trouble]
    assert codes == [1, code]
    assert said.count("Traceback") == (trouble != "starves")
    assert ("error: out of memory\n" in said) == (trouble == "starves")
    assert ("ZeroDivisionError" in said) == (trouble == "raises")
    assert ("KeyboardInterrupt" in said) == (trouble == "interrupted")


def test_no_thread_is_left_in_the_store_when_python_ends():
    """One that the end meets there aborts the process: "terminate called"."""

    def body() -> list[int]:
        start("no", 1, 60.0)
        with ending_together(60.0):
            names = [thread.name for thread in threading.enumerate()]
            dist.barrier()
        return [names.count("watch"), sum(t.name == "watch" for t in threading.enumerate())]

    assert on_ranks(2, body) == [[2, 0], [2, 0]]
