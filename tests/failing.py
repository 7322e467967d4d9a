"""A training in which one rank fails, as a program: `failing.py MOMENT END FOLDER`; see test_jobs.py."""

import os
import signal
import sys
import threading
import time

MOMENT, END, FOLDER = sys.argv[1:]
RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")))
#: Rank 0 alone writes checkpoints.
FAILING = 0 if MOMENT == "checkpoint" else 1
FAILS = RANK == FAILING
# In one write, which the launcher passes on as a whole.
sys.stdout.write(f"process {RANK} {os.getpid()}\n")
sys.stdout.flush()


def fail():
    print("fails", flush=True)
    if END == "exception":
        raise KeyError("broken")
    if END == "exception beside a thread":
        threading.Thread(target=time.sleep, args=(1000,)).start()
        raise KeyError("broken")
    if END == "sys.exit":
        sys.exit(3)
    if END == "os._exit":
        os._exit(0)
    if END == "Ctrl-C":
        time.sleep(1000)
    os.kill(os.getpid(), getattr(signal, END))


if MOMENT == "earlier import" and FAILS:
    fail()

import numpy as np  # noqa: E402

import treepie as tp  # noqa: E402
from treepie.checkpoint import files as storage  # noqa: E402
from treepie.kernels import native  # noqa: E402

if MOMENT == "import" and FAILS:
    fail()

world = tp.distributed.world()


class At:
    """Fails at the n-th call."""

    def __init__(self, moment, n):
        self.left = n if FAILS and moment == MOMENT else -1

    def __call__(self, *_):
        self.left -= 1
        if self.left == 0:
            fail()


class Failing:
    """A communicator that fails in a reduction."""

    def __init__(self):
        self.rank, self.size, self._at = world.rank, world.size, At("reduction", 20)
        self.broadcast, self.barrier, self.abort = world.broadcast, world.barrier, world.abort

    def sum(self, array):
        self._at()
        world.sum(array)


def layer():
    at = At("forward", 5)

    def apply(params, state, x, *, dtype, training, rngs, ctx):
        at()
        return x * 2.0, state

    return tp.layer.Layer(lambda rngs, dtype: tp.layer.Vars({}, {}, dtype), apply)


in_data, in_checkpoint, replace = At("data", 5), At("checkpoint", 2), storage.replace


def element(k):
    in_data()
    return np.ones((6, 3), "f4"), np.zeros((6, 2), "f4")


def failing_replace(source, target):
    in_checkpoint()
    replace(source, target)


storage.replace = failing_replace
if MOMENT == "compile" and FAILS:
    native.load("failing", fail)
comm = Failing()
data = tp.Data.of_fn(10, element).prefetch(2).shard(comm)
trainer = tp.Trainer(tp.layer.sequential([tp.layer.linear(3, 2), layer()]), tp.optim.sgd(1e-3))
trainer.fit(
    trainer.init(tp.rng.key(0)),
    data,
    loss=tp.loss.mse,
    epochs=10**6,
    comm=comm,
    report=At("callback", 5),
    checkpoint=tp.checkpoint.every(3, FOLDER) if MOMENT == "checkpoint" else None,
)
