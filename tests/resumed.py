"""A training for test_resume.py, as a program: `python resumed.py FOLDER [STEP TO STOP AFTER]`.

It has all that has a state: dropout, a layer with a state, moments, a schedule, a shuffled order, windows
of several batches with a short last one, a prefetching thread, scores.
"""

import json
import os
import sys

import numpy as np

import treepie as tp


class Stop(BaseException):
    pass


def counting():
    def apply(params, state, x, *, dtype, training, rngs, ctx):
        seen = state["seen"] + (1 if training else 0)
        return x * (1 + 0.01 * seen.astype(dtype)), {"seen": seen}

    def init(rngs, dtype):
        return tp.layer.Vars({}, {"seen": tp.zeros((), tp.int32)}, dtype)

    return tp.layer.Layer(init, apply)


def data(n, key):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 3)).astype("f4"), rng.integers(0, 4, n)
    return tp.Data.prepare((x, y), batch_size=4, shuffle=key).prefetch(2)


def run(directory, stop=None, resume=True, epochs=3, steps=2, log=None):
    layer = tp.layer
    model = layer.sequential([layer.linear(3, 8), counting(), layer.dropout(0.3), layer.linear(8, 4)])
    rate = tp.optim.schedule.warmup_cosine(0.0, 0.1, 9)
    trainer, history = tp.Trainer(model, tp.optim.adam(rate)), tp.History()

    def report(step, loss, st):
        if log is not None:
            log.append((step, loss))
        if step == stop:
            raise Stop

    scores = {"accuracy": tp.metric.Accuracy(), "confusion": tp.metric.ConfusionMatrix()}
    st = trainer.fit(
        trainer.init(tp.rng.key(0)),
        data(27, tp.rng.key(1)),
        rngs=tp.rng.key(2),
        loss=tp.loss.cross_entropy_sparse,
        epochs=epochs,
        accumulate_steps=2,
        clip_norm=1.0,
        report=report,
        validate=(data(10, None), scores),
        history=history,
        checkpoint=tp.checkpoint.every(steps, directory) if directory else None,
        resume=resume and directory is not None,
    )
    return st, history


def content(st, history):
    leaves = tp.ptree.leaves((st.vars.params, st.vars.state, list(st.opt_state.moments)))
    rows = [{k: x.tolist() if k == "confusion" else x for k, x in e.items()} for e in history.epochs]
    return json.dumps(
        [
            [x.numpy().tobytes().hex() for x in leaves],
            st.step,
            st.opt_state.count,
            history.steps,
            rows,
        ]
    )


if __name__ == "__main__":
    try:
        print(content(*run(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)))
    except Stop:
        os._exit(7)
