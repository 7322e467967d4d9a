"""Steps of ranks as one native call: the bits of steps that are taken call by call, and the same ends."""

import pytest

from .jobs import launch, needs_mpi

pytestmark = needs_mpi

#: Trains with whole steps on all ranks, on none, and on some, and compares.
CODE = """
import itertools, warnings
import numpy as np, treepie as tp
from treepie.train.whole_step import WholeStep

comm = tp.distributed.world()
rng = np.random.default_rng(0)
x, y = rng.normal(size=(BATCHES * 12 - SHORT, 6)), rng.normal(size=(BATCHES * 12 - SHORT, 3))
counts, take, run = [], WholeStep.take, WholeStep._run

def counted(self, *arguments):
    done = run(self, *arguments)
    counts[-1] += 1
    return done

WholeStep._run = counted

def bits(st):
    return [t.numpy().tobytes() for t in tp.ptree.leaves((st.vars.params, st.opt_state.buffers))]

def train(which, dtype="float32", bad=None, targets=None, shuffle=tp.rng.key(1), kept=(),
          losses_of_elements=(), **options):
    WholeStep.take = take if which(comm.rank) else lambda *_: None
    counts.append(0)
    inputs, targets = x.astype(dtype), y.astype(dtype) if targets is None else targets
    if bad is not None:
        inputs[bad] = np.inf
    layers = [tp.layer.linear(6, 9), tp.layer.tanh(), tp.layer.linear(9, 3)]
    trainer = tp.Trainer(tp.layer.sequential(layers), tp.optim.adamw(1e-2, weight_decay=0.1))
    data = tp.Data.prepare((inputs, targets), batch_size=12, shuffle=shuffle).shard(comm)
    if losses_of_elements:
        each = itertools.cycle(losses_of_elements)
        data, options = data.map(lambda x, y: (x, next(each))), options | {"loss": None}
    losses = []
    st = trainer.init(rngs=tp.rng.key(0), dtype=dtype)
    options = {"comm": comm, "loss": tp.loss.mse, "epochs": 2, "progress": False} | options
    states = []

    def report(step, loss, st):
        losses.append(repr(loss))
        if step in kept and comm.rank:  # whose next step needs new memory, on all ranks
            states.append((st, bits(st)))

    st = trainer.fit(st, data, report=report, **options)
    assert all(bits(st) == before for st, before in states)
    return bits(st), losses

def same(least, **options):
    everywhere = train(lambda rank: True, **options)
    assert counts[-1] >= least, counts
    assert train(lambda rank: False, **options) == everywhere
    assert counts[-1] == 0
    assert train(lambda rank: rank % 2, **options) == everywhere
    assert train(lambda rank: rank % 2 == 0, **options) == everywhere

TESTS
print("equal")
"""
TESTS = {
    "plain": "same(BATCHES)",
    "float64": "same(BATCHES, dtype='float64')",
    "clipped": "same(BATCHES, clip_norm=0.1)",
    "micro_shards": "same(BATCHES if comm.size == 2 else 0, micro_shards=4)",
    "summed": "same(BATCHES, loss_reduction='sum')",
    "compared": "same(BATCHES, compare_every=1)",
    "kept": "same(BATCHES // 2, kept=(2, 5))",
    "two losses by turns": """
square, distance = tp.pure(lambda out: (out * out).mean()), tp.pure(lambda out: abs(out - 1.0).mean())
same(BATCHES, losses_of_elements=(square, distance))
""",
    "not finite": """
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    same(BATCHES, bad=3, on_nonfinite="skip")
    same(BATCHES, bad=3, on_nonfinite="skip", clip_norm=0.1)
""",
    "no weight": """
labels = np.where(np.arange(len(x)) < 36, 1, -1)
loss = tp.pure(lambda out, y: tp.loss.cross_entropy_sparse(out, y, ignore_index=-1))
for which in (lambda rank: True, lambda rank: rank % 2):
    try:
        train(which, targets=labels, loss=loss, shuffle=None)
        raise AssertionError
    except ValueError as error:
        assert "all targets of step 4 are ignored" in str(error), error
        assert counts[-1] == (3 if which(comm.rank) else 0), counts
""",
}


@pytest.mark.parametrize("short", [0, 5])
@pytest.mark.parametrize("n", [2, 3])
def test_whole_steps_have_the_same_bits(n, short):
    tests = "\n".join(TESTS.values())
    code = CODE.replace("TESTS", tests).replace("BATCHES", "6").replace("SHORT", str(short))
    status, output, errors = launch(n, code)
    assert status == 0, errors
    assert output.count("equal") == n
