"""A training for test_preemption.py, as a program: `python preempted.py FOLDER [EPOCHS]`.

It prints its process, "ready", each step, and at the end "result" and a digest of the result.
"""

import hashlib
import os
import sys
import time

import numpy as np

import treepie as tp


def run(directory, epochs=6, report=None, comm=None, steps=3, **options):
    x, y = np.random.default_rng(0).normal(size=(2, 40, 4))
    layers = [tp.layer.linear(4, 8), tp.layer.tanh(), tp.layer.linear(8, 4)]
    trainer, history = tp.Trainer(tp.layer.sequential(layers), tp.optim.adam(1e-2)), tp.History()
    data = tp.Data.prepare((x, y), batch_size=7, shuffle=tp.rng.key(1))
    st = trainer.fit(
        trainer.init(tp.rng.key(0), dtype=tp.float64),
        data if comm is None else data.shard(comm),
        loss=tp.loss.mse,
        epochs=epochs,
        report=report,
        comm=comm,
        checkpoint=directory and tp.checkpoint.every(steps, directory, **options),
        resume=directory is not None,
        history=history,
    )
    return digest(st, history)


def digest(st, history):
    leaves = tp.ptree.leaves((st.vars.params, list(st.opt_state.moments)))
    content = [x.numpy().tobytes() for x in leaves] + [
        repr((history.steps, history.epochs, st.step)).encode()
    ]
    return hashlib.sha256(b"".join(content)).hexdigest()


if __name__ == "__main__":
    comm = tp.distributed.world()
    several = comm if comm.size > 1 else None

    def report(step, loss, st):
        if comm.rank == 0:
            print("step", step, flush=True)
        time.sleep(0.01)

    # In one write, which the launcher passes on as a whole.
    sys.stdout.write(f"process {comm.rank} {os.getpid()}\n")
    sys.stdout.flush()
    comm.barrier()
    time.sleep(0.1)
    if comm.rank == 0:
        print("ready", flush=True)
    result = run(sys.argv[1], int(sys.argv[2]), report, several)
    if comm.rank == 0:
        print("result", result)
