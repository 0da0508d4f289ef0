"""Processes joined by gloo, or by NCCL on a GPU each, started once and given one function after the other.

Nothing here imports torch: the children set their environment first.
"""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from contextlib import closing

SECONDS = {"gloo": 90, "nccl": 240}
"""How long a function may take before its processes count as stuck; on GPUs Muon is compiled first."""


class JoinedProcesses:
    """A pool of ranks. Functions are given by name, so they have to be at the top of a module."""

    def __init__(self, backend: str = "gloo", count: int = 2):
        self.backend, self.count = backend, count

    def __enter__(self) -> "JoinedProcesses":
        context, port = multiprocessing.get_context("spawn"), free_port()
        self.pipes, self.children = [], []
        for rank in range(self.count):
            ours, theirs = context.Pipe()
            child = context.Process(target=serve, args=(theirs, rank, self.count, port, self.backend), daemon=True)
            child.start()
            self.pipes.append(ours)
            self.children.append(child)
        return self

    def __exit__(self, *error) -> None:
        for child in self.children:
            child.kill()
            child.join()

    def run(self, function: Callable, *args, **kwargs) -> list:
        """Call function(*args, **kwargs) on all ranks at once and return what each returned."""
        for pipe in self.pipes:
            pipe.send_bytes(pickle.dumps((function, args, kwargs)))
        results = [self._receive(pipe) for pipe in self.pipes]
        failures = [text for failed, text in results if failed]
        assert not failures, "\n".join(failures)
        return [result for _, result in results]

    def _receive(self, pipe) -> tuple[bool, object]:
        if not pipe.poll(SECONDS[self.backend]):
            return True, f"no answer within {SECONDS[self.backend]} seconds"
        return pickle.loads(pipe.recv_bytes())


def serve(pipe, rank: int, count: int, port: int, backend: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), OMP_NUM_THREADS="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if backend == "gloo":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    import torch.distributed

    if backend == "nccl":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(backend)
    while True:
        function, args, kwargs = pickle.loads(pipe.recv_bytes())
        try:
            answer = False, function(*args, **kwargs)
        except Exception:
            answer = True, f"rank {rank}: {traceback.format_exc()}"
        pipe.send_bytes(pickle.dumps(answer))


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
