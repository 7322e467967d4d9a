"""A training that another process goes on with, as a program: `python pickled.py START_METHOD`."""

import multiprocessing
import sys

import numpy as np

import treepie as tp

KEY = tp.rng.key(3)


def double(x):
    return x * 2


def matrices(params):
    return tp.ptree.map(lambda p: p.ndim == 2, params)


def halved(step):
    return 0.01 if step < 4 else 0.005


def init(rngs, dtype):
    return tp.layer.Vars({"w": tp.ones((6,), dtype)}, {"seen": tp.zeros((), tp.int32)}, dtype)


def apply(params, state, x, *, dtype, training, rngs, ctx):
    return x * params["w"], {"seen": state["seen"] + (1 if training else 0)}


def make():
    layer = tp.layer
    model = layer.sequential(
        [
            layer.linear(6, 64, weight_init=tp.init.variance_scaling(2.0, "fan_in", "normal")),
            layer.batch_norm(64),
            layer.lambda_(double),
            layer.residual(layer.sequential([layer.linear(64, 64), layer.lambda_(tp.tanh)])),
            layer.dropout(0.2),
            layer.linear(64, 6, bias_init=tp.init.constant(0.1)),
            layer.Layer(init=init, apply=apply, name="scale"),
        ]
    )
    schedule = tp.optim.schedule
    rate = schedule.join([schedule.warmup_linear(0.0, 0.01, 2), halved], [2])
    return tp.Trainer(model, tp.optim.adamw(rate, weight_decay=0.1, mask=matrices))


def trained(trainer, st):
    """Return the losses of three steps and the state after them."""
    rng, losses = np.random.default_rng(0), []
    for k in range(3):
        x, y = rng.normal(size=(256, 6)).astype("f4"), rng.integers(0, 6, 256)
        key = tp.rng.fold_in(KEY, k)
        loss, st = trainer.step(st, x, lambda out: tp.loss.cross_entropy_sparse(out, y), rngs=key)  # noqa: B023
        losses.append(loss)
    return losses, st


def content(losses, st):
    """Return all bits of a result."""
    leaves = tp.ptree.leaves((losses, st.vars.params, st.vars.state, list(st.opt_state.moments)))
    return [st.step, st.opt_state.count, *(t.numpy().tobytes() for t in leaves)]


def main(method):
    np.asarray(tp.ones((700, 700)) @ tp.ones((700, 700)))  # starts the threads, which no fork takes along
    trainer = make()
    _, st = trained(trainer, trainer.init(tp.rng.key(0)))
    before = content([], st)
    with multiprocessing.get_context(method).Pool(1) as pool:
        theirs = pool.apply_async(trained, (trainer, st)).get(timeout=120)
        pool.close()
        pool.join()
    assert content([], st) == before
    assert content(*theirs) == content(*trained(trainer, st))
    # The state that came back is one to go on with.
    assert content(*trained(trainer, theirs[1])) == content(*trained(make(), theirs[1]))
    print("same bits")


if __name__ == "__main__":
    main(sys.argv[1])
