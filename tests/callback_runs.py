"""Runs with callbacks, for tests."""

import numpy as np

import treepie as tp

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 3)).astype("f4")
Y = (X[:, :1] - 2 * X[:, 1:2] + RNG.normal(size=(30, 1)) * 0.3).astype("f4")
KEY = tp.rng.key(0)


class Stop(BaseException):
    pass


def trainer(optimizer=None):
    model = tp.layer.sequential([tp.layer.linear(3, 4), tp.layer.tanh(), tp.layer.linear(4, 1)])
    return tp.Trainer(model, optimizer or tp.optim.adam(0.3))


def fit(t=None, rows=30, shuffle=KEY, comm=None, **options):
    t = t or trainer()
    data = tp.Data.prepare((X[:rows], Y[:rows]), batch_size=10, shuffle=shuffle)
    validation = tp.Data.prepare((X[20:], Y[20:]), batch_size=5)
    options = {"loss": tp.loss.mse, "progress": False, **options}
    options.setdefault("validate", (validation, {"mae": tp.metric.MAE()}))
    data = data if comm is None else data.shard(comm)
    return t.fit(t.init(tp.rng.key(1), options.pop("dtype", tp.float32)), data, comm=comm, **options)


def bits(st):
    moments = st.opt_state.to_trees()[1]
    return [t.numpy().tobytes() for t in tp.ptree.leaves((st.vars.params, moments))], st.step


class Log:
    def __init__(self, stop=None, when="epoch"):
        self.calls, self.stop, self.when = [], stop, when

    def on_begin(self, resumed, st):
        self.calls.append(("begin", resumed, st.step))

    def on_step(self, step, loss, st):
        assert st.step == step
        self.calls.append(("step", step))
        if (self.when, step) == ("step", self.stop):
            raise tp.EarlyStop

    def on_epoch(self, epoch, scores, st):
        self.calls.append(("epoch", epoch, st.step, sorted(scores)))
        if (self.when, epoch) == ("epoch", self.stop):
            raise tp.EarlyStop

    def on_end(self, st):
        self.calls.append(("end", st.step))


def callbacks_of(folder):
    call = tp.callback
    return [
        call.early_stopping("mae", patience=3),
        call.best("loss", folder / "best"),
        call.reduce_on_plateau("mae", 0.5, patience=1, cooldown=1),
        call.ema(0.8),
        call.csv(folder / "scores.csv"),
    ]


def run(folder, stop=None, every=2, **options):
    """Return everything that a run with callbacks leaves behind."""

    def report(step, loss, st):
        if step == stop:
            raise Stop

    used, history = callbacks_of(folder), tp.History()
    plan = tp.checkpoint.every(every, folder / "run")
    st = fit(
        callbacks=used, epochs=12, checkpoint=plan, resume=True, history=history, report=report, **options
    )
    early, best, plateau, average, _ = used
    saved = tp.checkpoint.load_state(folder / "best", st)
    return (
        bits(st),
        history.steps,
        history.epochs,
        (early.score, early.epoch, bits(early.best), early.state["wait"]),
        (best.score, best.epoch, bits(best.best), bits(saved)),
        plateau.state,
        [t.numpy().tobytes() for t in tp.ptree.leaves(average.average.params)],
        (folder / "scores.csv").read_bytes(),
    )
