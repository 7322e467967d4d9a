"""The jobs of `scaling.py`: ranks that train or add up when they are asked to, and sleep otherwise.

A rank reads requests from a pipe of its own, so that ranks that have nothing to do take no core; the first
one answers. A request is [what, name, count]; the answer a list of seconds.
"""

import inspect
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import models
import numpy as np

#: Steps, or calls, at the start of a turn that do not count.
COLD = 3


class Job:
    """Processes that train together.

    library: treepie or DDP.  ranks: how many.  threads: of each.  env: of all.
    """

    def __init__(self, library, ranks, threads, **env):
        self.ranks, self._library = ranks, library
        self._folder = tempfile.TemporaryDirectory(prefix="treepie-scaling-")
        folder = Path(self._folder.name)
        for name in ("answers", *map(str, range(ranks))):
            os.mkfifo(folder / name)
        settings = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        env = {**os.environ, **dict.fromkeys(settings, str(threads)), **env}
        command = [sys.executable, __file__, library, str(folder)]
        if library == "DDP":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
            starts = [(command, {**env, "RANK": str(rank)}) for rank in range(ranks)]
        elif ranks > 1:
            launcher = [sys.executable, "-m", "treepie.run", "-n", str(ranks), *command[1:]]
            starts = [(launcher, env)]
        else:
            starts = [(command, env)]
        self._processes = [subprocess.Popen(c, env=e, stdin=subprocess.DEVNULL) for c, e in starts]
        self._requests = [(folder / str(rank)).open("w", encoding="ascii") for rank in range(ranks)]
        self._answers = (folder / "answers").open(encoding="ascii")

    def ask(self, what, name="", count=0):
        """Return what the ranks have measured."""
        for request in self._requests:
            request.write(json.dumps([what, name, count]) + "\n")
            request.flush()
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"a job of {self.ranks} ranks of {self._library} ended; its error is above")
        return json.loads(line)

    def end(self):
        """Let the ranks end."""
        for request in self._requests:
            request.close()
        for process in self._processes:
            process.wait(60)
        self._answers.close()
        self._folder.cleanup()


def serve(folder, rank, answer):
    """Answer requests to a rank until there are no more."""
    with (folder / str(rank)).open(encoding="ascii") as requests:
        answers = (folder / "answers").open("w", encoding="ascii") if rank == 0 else None
        for line in requests:
            result = answer(*json.loads(line))
            if answers:
                print(json.dumps(result), file=answers, flush=True)


class Watched:
    """A communicator that counts sums and their bytes, and notes when; or leaves them out.

    silent: the numbers of the steps that leave them out.  at: for each step, (when, calls, bytes so far) at
    its first sum.
    """

    def __init__(self, comm, silent=range(0)):
        self._comm, self.rank, self.size = comm, comm.rank, comm.size
        self._silent, self.calls, self.bytes, self.at = silent, 0, 0, []

    @property
    def silent(self):
        """Whether this step leaves its sums out."""
        return len(self.at) - 1 in self._silent

    def begin_step(self):
        """Note the first sum of a step."""
        self.at.append((time.perf_counter(), self.calls, self.bytes))

    def joint_step(self, arrays, *options):
        joint = self._comm.joint_step(arrays, *options)
        return joint and WatchedStep(joint, self, sum(a.nbytes for a in arrays))

    def __getattr__(self, name):
        return getattr(self._comm, name)

    def broadcast(self, array, root=0):
        self._comm.broadcast(array, root)

    def barrier(self):
        self._comm.barrier()

    def abort(self, status=1):
        self._comm.abort(status)

    def _counts(self, array):
        self.calls, self.bytes = self.calls + 1, self.bytes + array.nbytes
        return not self.silent

    def sum(self, array):
        if self._counts(array):
            self._comm.sum(array)

    def sum_part(self, array):
        self.begin_step()
        return self._comm.sum_part(array) if self._counts(array) else 0.0

    def gather_parts(self, array):
        if self._counts(array):
            self._comm.gather_parts(array)

    def begin_sum(self, array):
        from treepie.distributed.communicator import Completed

        return self._comm.begin_sum(array) if self._counts(array) else Completed()


class WatchedStep:
    """A step as one native call, as `Watched` sees it."""

    def __init__(self, joint, comm, nbytes):
        self._joint, self._comm, self._bytes = joint, comm, nbytes

    def __getattr__(self, name):
        return getattr(self._joint, name)

    def run(self, parts, results, update):
        comm = self._comm
        comm.begin_step()
        comm.calls, comm.bytes = comm.calls + 3, comm.bytes + self._bytes + self._joint.table.nbytes
        if not comm.silent:
            return self._joint.run(parts, results, update)
        from treepie.kernels.program import TableSequence

        # The weight, the loss and the norm stay those of the step before.
        ended, row = TableSequence([*parts, update]).run()
        return (self._joint.WHOLE if ended < 0 else self._joint.UPDATE), row


class Treepie:
    """The requests that ranks of treepie answer."""

    def __init__(self):
        import with_treepie

        import treepie as tp

        self._tp, self._trainer = tp, with_treepie.trainer
        self.comm = tp.distributed.world()
        self._states = {}

    def answer(self, what, name, count):
        if what == "sum":
            return self._sums(name, int(count))
        if what == "overlap":
            return self._overlap(int(name), int(count))
        return self._steps(name, int(count), what)

    def _steps(self, name, count, what):
        """Return the seconds of steps of `fit`; or, for "counts", the calls and bytes of one."""
        tp = self._tp
        # The last step ends with a sum of all ranks, so that they end together.
        comm = Watched(self.comm, range(2, count + COLD - 1) if what == "without sums" else range(0))
        if name not in self._states:
            trainer = self._trainer(name)
            batches = models.batches(name)
            self._states[name] = trainer, batches, trainer.init(rngs=tp.rng.key(0))
        trainer, batches, st = self._states[name]
        rounds = [batches[k % len(batches)] for k in range(count + COLD)]
        rows = len(batches[0][0])
        arrays = tuple(np.concatenate(parts) for parts in zip(*rounds, strict=True))
        data, options = tp.Data.prepare(arrays, batch_size=rows), {"progress": False}
        if comm.size > 1:
            data = data.shard(comm)
            options |= {"comm": comm, "compare_every": 10**9}
            options |= {"micro_shards": 4} if what == "micro_shards" else {}
        else:
            options["report"] = lambda *_: comm.begin_step()
        loss = tp.loss.mse if name in models.SQUARES else tp.loss.cross_entropy_sparse
        st = trainer.fit(st, data, loss=loss, **options)
        if what != "without sums":  # after which ranks have different weights
            self._states[name] = trainer, batches, st
        when, calls, sizes = zip(*comm.at, strict=True)
        if what == "counts":
            return [calls[-1] - calls[-2], sizes[-1] - sizes[-2]]
        return [b - a for a, b in itertools.pairwise(when)][COLD - 1 :]

    def _sums(self, kind, size):
        """Return the seconds of sums of `size` bytes. kind: shared or private."""
        a = self.comm.empty((size // 4,), "float32") if kind == "shared" else np.empty(size // 4, "f4")
        a[...] = 0
        times = []
        for _ in range(COLD + max(20, min(300, 10**7 // size))):
            self.comm.barrier()
            start = time.perf_counter()
            self.comm.sum(a)
            times.append(time.perf_counter() - start)
        return times[COLD:]

    def _overlap(self, size, count):
        """Return seconds: of a sum, of computing, of both at once with a test every 0.5 ms, and without."""
        a, b = np.zeros(size // 4, "f4"), np.ones(25_000, "f4")
        comm, medians = self.comm, []

        def compute(pending=None):
            until = [time.perf_counter() + 5e-4]
            for _ in range(2000):
                np.add(b, 1.0, out=b)
                if pending and time.perf_counter() > until[0]:
                    pending.test()
                    until[0] = time.perf_counter() + 5e-4

        def overlapped(tests):
            pending = comm.begin_sum(a)
            compute(pending if tests else None)
            pending.wait()

        for run in (lambda: comm.sum(a), compute, lambda: overlapped(True), lambda: overlapped(False)):
            times = []
            for _ in range(count):
                comm.barrier()
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            medians.append(float(np.median(times)))
        return medians


def has_micro_shards():
    """Whether `fit` has this argument."""
    import treepie as tp

    return "micro_shards" in inspect.signature(tp.Trainer.fit).parameters


def serve_ddp(folder):
    """Answer requests as a rank of PyTorch's DistributedDataParallel, on gloo."""
    import torch
    import with_torch

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    steps = {}

    def answer(what, name, count):
        if name not in steps:
            steps[name] = with_torch.step(name, ranks=(rank, size))
        times = []
        for _ in range(count + COLD):
            start = time.perf_counter()
            steps[name]()
            times.append(time.perf_counter() - start)
        return times[COLD:]

    serve(folder, rank, answer)
    torch.distributed.destroy_process_group()


def main():
    library, folder = sys.argv[1], Path(sys.argv[2])
    if library == "DDP":
        serve_ddp(folder)
    else:
        ranks = Treepie()
        serve(folder, ranks.comm.rank, ranks.answer)


if __name__ == "__main__":
    main()
