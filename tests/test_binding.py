"""Steps of a `fit` that are like one before: they bind an example and numbers, and nothing stale is left."""

import itertools
from array import array
from types import SimpleNamespace

import numpy as np
import pytest

import treepie as tp
from treepie.kernels import config
from treepie.kernels.program import BoundTable
from treepie.train.pure_step import PureModelStep
from treepie.train.step import Step

from .op_by_op import run_eagerly

KEY = tp.rng.key(3)
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((24, 5), "f4"), RNG.standard_normal((24, 3), "f4")


def batches(rows=(4,), count=12):
    """Return batches of some lengths by turns."""
    lengths = itertools.islice(itertools.cycle(rows), count)
    return [(tp.tensor(X[:n] * k), tp.tensor(Y[:n])) for k, n in enumerate(lengths, 1)]


def train(loss, data=None, monkeypatch=None, model=None, **options):
    """Return the bits of parameters and moments, and the losses; op by op with `monkeypatch`."""
    if monkeypatch is not None:
        run_eagerly(monkeypatch)
    model = model or tp.layer.sequential([tp.layer.linear(5, 6), tp.layer.tanh(), tp.layer.linear(6, 3)])
    trainer, history = tp.Trainer(model, tp.optim.adam(0.01)), tp.History()
    data = tp.Data.of_array(data or batches())
    st = trainer.fit(trainer.init(KEY), data, loss=loss, history=history, **options)
    leaves = tp.ptree.leaves((st.vars.params, st.opt_state.buffers))
    return [t.numpy().tobytes() for t in leaves], repr(history.steps)


def agrees(make_loss, monkeypatch, **options):
    """Compare steps with those that run op by op."""
    result = train(make_loss(), **options)
    with monkeypatch.context() as patch:
        assert result == train(make_loss(), monkeypatch=patch, **options)


@pytest.fixture
def repeats(monkeypatch):
    """The kinds of steps that repeated the run of another."""
    kinds = []
    bound, again = Step._bound, PureModelStep.again

    def counted_bound(self, program):
        run = bound(self, program)
        if run is not None:
            kinds.append(type(self).__name__)
        return run

    def counted_again(inputs, commit):
        result = again(inputs, commit)
        if result is not None:
            kinds.append("replay")
        return result

    monkeypatch.setattr(Step, "_bound", counted_bound)
    monkeypatch.setattr(PureModelStep, "again", counted_again)
    return kinds


def square(out, y):
    """A loss of a user's."""
    return tp.square(out - y).mean()


def by_turns(*functions):
    """Return a loss that is another of some functions in each step."""
    each = itertools.cycle(functions)
    return lambda out, y: next(each)(out, y)


def test_steps_with_a_users_loss_repeat_the_run_of_one_before(repeats):
    train(square)
    assert repeats == ["PureModelStep"] * 10  # the first takes new memory, the second binds it


def test_steps_of_several_elements_repeat_parts_and_updates(repeats):
    train(tp.loss.mse, accumulate_steps=3)
    assert repeats.count("replay") >= 6  # all of the last two steps
    assert repeats.count("UpdateStep") == 2


def test_other_lengths_have_runs_of_their_own(monkeypatch, repeats):
    loss = lambda: square
    agrees(loss, monkeypatch, data=batches((4, 7, 5)))
    assert len(repeats) == 12 - 1 - 3
    agrees(lambda: tp.loss.mse, monkeypatch, data=batches((4, 7, 5)), accumulate_steps=2)


def test_more_kinds_of_steps_than_are_kept(monkeypatch, repeats):
    data = batches(range(1, 25), 24) * 3
    data += [(tp.tensor(np.zeros((n, 5), "f4")), tp.tensor(np.zeros((n, 3), "f4"))) for n in range(30, 60)]
    agrees(lambda: square, monkeypatch, data=data + data)


def test_programs_by_turns_are_each_repeated(monkeypatch, repeats):
    agrees(lambda: by_turns(square, lambda out, y: tp.abs(out - y).sum()), monkeypatch)
    assert len(repeats) >= 9


@pytest.mark.parametrize("options", [{}, {"accumulate_steps": 2}], ids=["whole", "in parts"])
@pytest.mark.parametrize("loss", [tp.loss.mse, square], ids=["pure", "user"])
def test_states_that_somebody_keeps_are_not_written_to(loss, options, monkeypatch, repeats):
    def run(patch):
        states = []

        def report(step, value, st):
            if step in (2, 5):
                states.append((st, [t.numpy().copy() for t in tp.ptree.leaves(st.vars.params)]))

        result = train(loss, monkeypatch=patch, report=report, **options)
        for st, before in states:
            for t, kept in zip(tp.ptree.leaves(st.vars.params), before, strict=True):
                np.testing.assert_array_equal(t.numpy(), kept)
        return result

    assert run(None) == run(monkeypatch)


def test_the_number_of_threads_may_change_between_steps(monkeypatch, repeats):
    before = tp.get_num_threads()

    def report(step, value, st):
        tp.set_num_threads(1 + step % 2)

    try:
        agrees(lambda: square, monkeypatch, report=report)
        agrees(lambda: tp.loss.mse, monkeypatch, report=report)
    finally:
        tp.set_num_threads(before)


def test_a_step_that_is_not_finite_is_skipped_and_others_go_on(monkeypatch):
    data = batches()
    data[5] = (tp.tensor(np.full((4, 5), np.nan, "f4")), data[5][1])
    for loss in (tp.loss.mse, square):
        with pytest.warns(RuntimeWarning, match="skipped"):
            result = train(loss, data, on_nonfinite="skip", report=lambda *_: None)
        with pytest.warns(RuntimeWarning, match="skipped"), monkeypatch.context() as patch:
            assert result == train(loss, data, patch, on_nonfinite="skip", report=lambda *_: None)


def test_a_label_out_of_range_is_the_error_of_the_eager_call(monkeypatch):
    labels = [(tp.tensor(X[:4]), tp.tensor([0, 1, 2, k])) for k in (0, 1, 2, 7)]
    with pytest.raises(ValueError, match="7") as replayed:
        train(tp.loss.cross_entropy_sparse, labels, report=lambda *_: None)
    run_eagerly(monkeypatch)
    with pytest.raises(ValueError, match="7") as eager:
        train(tp.loss.cross_entropy_sparse, labels, report=lambda *_: None)
    assert str(replayed.value) == str(eager.value)


# ---- calls that follow the same entries as before
def test_settings_of_a_block_by_turns(monkeypatch):
    def emulated(out, y):
        with tp.precision("bfloat16_emulated"):
            return tp.square(tp.matmul(out, tp.transpose(out))).mean() + tp.square(out - y).mean()

    def exact(out, y):
        return tp.square(tp.matmul(out, tp.transpose(out))).mean() + tp.square(out - y).mean()

    def fast(out, y):
        with tp.accuracy("fast"):
            return tp.square(tp.exp(tp.tanh(out)) - y).mean()

    def high(out, y):
        return tp.square(tp.exp(tp.tanh(out)) - y).mean()

    agrees(lambda: by_turns(emulated, exact, exact), monkeypatch)
    agrees(lambda: by_turns(exact, emulated), monkeypatch)
    agrees(lambda: by_turns(fast, high, high), monkeypatch)
    agrees(lambda: by_turns(high, fast), monkeypatch)


def test_numbers_of_other_types_and_values(monkeypatch):
    numbers = [2, 2.0, True, -0.0, 0, 1e30, np.float32(2.5), 2**60, 3]
    for operation in (lambda x, n: x * n, lambda x, n: n - x, lambda x, n: x / (abs(n) + 1)):
        loss = lambda f=operation: by_turns(*[lambda o, y, n=n: (f(o, n) * 1e-3 - y).mean() for n in numbers])
        agrees(loss, monkeypatch)


def test_indices_from_outside_that_change_in_place(monkeypatch):
    def loss():
        index = np.arange(4)

        def select(out, y):
            index[:] = (index + 1) % 4
            rows = tp.take(out, tp.tensor(index), axis=0)
            return tp.square(rows - y).mean() + tp.square(out[index[:2]]).sum()

        return select

    agrees(loss, monkeypatch)


def test_calls_with_results_that_are_not_used_and_checkpoints_of_activations(monkeypatch):
    part = lambda x: tp.square(tp.tanh(x)).mean(axis=1)

    def remembered(out, y):
        return tp.checkpoint_activations(part)(out - y).sum()

    def plain(out, y):
        tp.exp(out)
        return part(out - y).sum()

    agrees(lambda: by_turns(remembered, plain, plain), monkeypatch)
    agrees(lambda: by_turns(plain, remembered), monkeypatch)


def test_a_block_that_begins_between_steps(monkeypatch):
    def report(block):
        def call(step, value, st):
            if step == 4:
                block.__enter__()
            if step == 8:
                block.__exit__()

        return call

    for loss in (square, tp.loss.mse):
        options = {"loss": loss, "data": batches()}
        result = train(report=report(tp.precision("bfloat16_emulated")), **options)
        assert result != train(**options)
        with monkeypatch.context() as patch:
            block = tp.precision("bfloat16_emulated")
            assert result == train(report=report(block), monkeypatch=patch, **options)


def test_an_interrupt_in_the_middle_of_moving_a_buffer():
    """What has moved half way is moved again, also to where it was before."""

    class Words(array):
        def __setitem__(self, word, address):
            super().__setitem__(word, address)
            if address == 16:
                raise KeyboardInterrupt

    words = Words("q", [8, 8])
    table = BoundTable(SimpleNamespace(walk=list), words, [[], [(0, 0), (1, 0)]], [0, 8])
    with pytest.raises(KeyboardInterrupt):
        table.rebind(1, 16)
    assert table.addresses != [0, 8]
    table.rebind(1, 8)
    assert list(words) == [8, 8]
    assert table.addresses == [0, 8]


def test_traces_that_are_dropped_leave_no_names(monkeypatch):
    monkeypatch.setattr(config, "PROGRAM_BYTES", 1)
    each = (tp.tanh, tp.sigmoid, tp.sin, tp.cos, tp.erf)
    losses = [lambda out, y, f=f: square(f(out), y) for f in each]
    trainer = tp.Trainer(tp.layer.linear(5, 3), tp.optim.sgd(0.01))
    for loss in losses:
        trainer.fit(trainer.init(KEY), tp.Data.of_array(batches()), loss=loss)

    def entries(entry):
        return 1 + sum(map(entries, set(entry.children.values())))

    cache = trainer.steps.cache
    assert len(cache.programs) == 1
    assert sum(entries(root) for root in cache._roots.values()) <= 8
