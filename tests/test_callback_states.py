"""Callbacks of a run that is resumed, or that ranks take together: as those of one without interruption."""

import numpy as np
import pytest

import treepie as tp
from treepie.distributed import Local

from .callback_runs import Log, Stop, bits, callbacks_of, fit, run, trainer

# ---- resuming


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result = run(folder)
    assert 9 < len(result[1]) < 36  # it has stopped early
    assert result[5]["factor"] < 1
    return result


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("stop", [1, 3, 4, 6, 9, 11, 12])
def test_a_resumed_run_equals_one_without_interruption(tmp_path, whole, stop, every):
    with pytest.raises(Stop):
        run(tmp_path, stop, every)
    assert run(tmp_path) == whole


def test_a_run_that_has_stopped_early_is_stopped(tmp_path, whole):
    assert run(tmp_path) == whole
    log = []
    assert run(tmp_path) == whole
    used = callbacks_of(tmp_path)
    report = lambda step, loss, st: log.append(step)
    plan = tp.checkpoint.every(2, tmp_path / "run")
    fit(
        callbacks=used,
        epochs=12,
        checkpoint=plan,
        resume=True,
        report=report,
    )
    assert log == []


def test_with_more_patience_a_run_that_has_stopped_goes_on(tmp_path):
    options = {"epochs": 9, "checkpoint": tp.checkpoint.every(3, tmp_path), "resume": True}
    rate = tp.optim.sgd(0.0)
    short, long = (tp.callback.early_stopping("loss", patience=p, restore_best=False) for p in (2, 4))
    assert fit(trainer(rate), shuffle=None, callbacks=[short], **options).step == 9
    assert fit(trainer(rate), shuffle=None, callbacks=[long], **options).step == 15


def test_callbacks_begin_anew_in_another_fit():
    stop = tp.callback.early_stopping("loss", patience=1, mode="max")
    first, second = Log(), Log()
    results = [bits(fit(callbacks=[stop, log], epochs=5)) for log in (first, second)]
    assert results[0] == results[1]
    assert first.calls == second.calls
    assert first.calls[-2:] == [("epoch", 2, 6, ["loss", "mae"]), ("end", 3)]


def test_a_callback_that_the_checkpoint_does_not_have_begins_anew(tmp_path):
    options = {"checkpoint": tp.checkpoint.every(3, tmp_path), "resume": True}
    fit(epochs=1, callbacks=[tp.callback.ema()], **options)
    best, log = tp.callback.best("loss"), Log()
    fit(epochs=2, callbacks=[best, log], **options)
    assert (best.epoch, log.calls[0]) == (2, ("begin", True, 3))


def test_the_state_of_ones_own_is_saved(tmp_path):
    class Own:
        def __init__(self):
            self.state = None

        def on_epoch(self, epoch, scores, st):
            self.state = {
                "numbers": [1, 2.5, None, True, np.float32(1.5), float("inf")],
                "pair": (st, "text"),
                "tensor": tp.arange(3),
                "vars": st.vars,
                "empty": {},
            }

    first, second = Own(), Own()
    options = {"checkpoint": tp.checkpoint.every(100, tmp_path), "resume": True}
    fit(callbacks=[first], **options)
    fit(callbacks=[second], **options)
    a, b = first.state, second.state
    assert b["numbers"] == a["numbers"]
    assert type(b["pair"]) is tuple
    assert b["pair"][1] == "text"
    assert bits(a["pair"][0]) == bits(b["pair"][0])
    assert b["tensor"].tolist() == [0, 1, 2]
    assert b["vars"].dtype == a["vars"].dtype
    assert b["empty"] == {}


@pytest.mark.parametrize(("value", "kind"), [({1, 2}, "set"), ({3: 4}, "dict with other keys than texts")])
def test_a_state_that_can_not_be_saved_is_named(tmp_path, value, kind):
    own = Log()
    own.state = [value]
    with pytest.raises(TypeError, match=f"the state of Log-0 has a {kind}, expected None, numbers"):
        fit(callbacks=[own], checkpoint=tp.checkpoint.every(1, tmp_path))


# ---- ranks


@pytest.mark.parametrize("n", [2, 3])
def test_ranks_decide_together_and_rank_0_writes(tmp_path, n):
    def train(folder, comm):
        used = callbacks_of(folder)
        st = fit(comm=comm, callbacks=used, epochs=12, dtype=tp.float64)
        return (
            bits(st)[1],
            used[0].epoch,
            used[2].factor,
            [t.numpy() for t in tp.ptree.leaves(st.vars.params)],
        )

    step, epoch, factor, params = train(tmp_path / "one", None)
    results = Local(n).run(lambda comm: train(tmp_path / "ranks", comm))
    for mine in results:
        assert mine[:3] == (step, epoch, factor)
        for a, b in zip(mine[3], params, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    one, ranks = ((tmp_path / k / "scores.csv").read_text().splitlines() for k in ("one", "ranks"))
    assert len(one) == len(ranks) == len(set(ranks)) > epoch
    assert one[0] == ranks[0]


@pytest.mark.parametrize("when", ["step", "epoch"])
def test_one_rank_that_stops_stops_all(when):
    def train(comm):
        log = Log(4 if when == "step" else 2, when) if comm.rank == 1 else Log()
        return fit(comm=comm, callbacks=[log], epochs=5).step

    assert Local(3).run(train) == [4 if when == "step" else 6] * 3


def test_ranks_with_other_callbacks_are_an_error():
    with pytest.raises(ValueError, match="callbacks"):
        Local(2).run(lambda comm: fit(comm=comm, callbacks=[Log()] if comm.rank else []))


def test_resumed_on_ranks(tmp_path):
    def train(comm, folder, stop=None, epochs=12):
        used = callbacks_of(folder)
        checkpoint = tp.checkpoint.every(2, folder / "run")
        options = {"epochs": stop or epochs, "checkpoint": checkpoint, "resume": True, "micro_shards": 4}
        st = fit(comm=comm, callbacks=used, **options)
        return bits(st), used[2].state, (used[0].score, used[0].epoch)

    whole = Local(2).run(lambda comm: train(comm, tmp_path / "whole"))
    Local(2).run(lambda comm: train(comm, tmp_path / "parts", stop=2))
    parts = Local(3).run(lambda comm: train(comm, tmp_path / "parts"))
    assert parts[0] == parts[2] == whole[0] == whole[1]
    assert (tmp_path / "parts/scores.csv").read_bytes() == (tmp_path / "whole/scores.csv").read_bytes()
