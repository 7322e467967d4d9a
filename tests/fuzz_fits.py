"""Random calls of `Trainer.fit`, with reports, losses and models whose Python is another in every step.

The programs are those of `fuzz_source.py`. Data is drawn right before the step that it is for; drawing an
element is what changes things, and reports may, too. Two fits follow each other, the second from the state
after the first.
"""

import random
import warnings

import treepie as tp

from . import fuzz_source
from .fuzz_steps import alone, execute, failure, left, seen
from .fuzz_values import Piece

REPORTS = [
    "log.append((step, loss, st.step, st.opt_state.count))",
    "states.append(st)",
    "if step % 2:\n    states.append(st)",
    "states[:] = [st]",
    "kept.append(st.vars.params)",
    "kept.append(list(st.opt_state.moments))",
    "log.append(float(tp.ptree.leaves(st.vars.params)[0].sum()))",
    "between((step + 3) % 6)",
    "kept.append(trainer.predict(st, X[0]))",
    "log.append(list(history.steps))",
    "aux['step'] = step\nme.state = st.vars.state",
    "kept.extend(aux.values())",
    "me.far = tp.optim.global_norm(st.vars.params) > 3\nlog.append(bool(me.far))",
    "if step == 4:\n    raise tp.EarlyStop",
    "if step == 5:\n    raise RuntimeError('stop')",
    "if loss < 1.0:\n    raise tp.EarlyStop",
]

#: A gradient that is not finite, of a loss that is, in elements that BAD holds.
_STEEP = Piece(
    "steep",
    "h = h + tp.sqrt(tp.abs(h) * steep$ + steep$)",
    "steep$ = np.ones((), FT)",
    "steep$[...] = 0.0 if drawn in BAD else 1.0",
)

_TAIL = """\
drawn, BAD, history = 0, {bad}, tp.History()
def element(k):
    global drawn
    drawn += 1
    between(drawn % 6)
    x, y = batch(k % 6)
    {spoilt}
    {element}
def draw():
    return tp.Data.of_fn({length}, element)
def report(step, loss, st):
{report}
options = {options}
"""


def make(seed):
    """Return the program of a seed."""
    program = fuzz_source.make(seed, pieces=random.Random(seed).choice([0, 1, 1, 2, 3]))
    rng = random.Random(f"fit {seed}")
    pairs, bad = rng.random() < 0.4, sorted({rng.randrange(1, 20) for _ in range(rng.choice([0, 0, 1, 3]))})
    options = {"rngs": "tp.rng.key(9)", "epochs": rng.choice([1, 2]), "history": "history"}
    if not pairs:
        options["loss"] = rng.choice(["loss", "lambda out, y: loss(out, y)", "tp.loss.cross_entropy_sparse"])
    if rng.random() < 0.4:
        options["clip_norm"] = rng.choice([0.1, 1.0, 100.0])
    if rng.random() < 0.4:
        options["accumulate_steps"] = rng.choice([2, 3])
    if rng.random() < (0.9 if bad else 0.3):
        options["on_nonfinite"] = "'skip'"
    bodies = rng.sample(REPORTS, rng.choice([0, 1, 1, 2]))
    if bodies:
        options["report"] = "report"
    steep = bad and rng.random() < 0.5
    if steep:
        place = rng.choice(["loss", *(f"part{k}" for k in range(program.lambdas))])
        program.pieces.append((place, _STEEP.numbered(99)))
    target = rng.choice(["return x, tp.tensor(y)", "return tp.tensor(x), tp.tensor(y)"])
    program.tail = _TAIL.format(
        bad=set(bad) or "set()",
        spoilt="x = x * np.nan if drawn in BAD else x" if bad and not steep else "pass",
        element="return x, loss_of(y)" if pairs else target,
        length=rng.randint(4, 8),
        report="\n".join(f"    {line}" for body in bodies for line in body.split("\n")) or "    pass",
        options=f"dict({', '.join(f'{k}={v}' for k, v in options.items())})",
    )
    return program


def run(program, way):
    """Return what is seen of the fits of a program: [(what, value), ...]."""
    with alone():
        names = execute(program, way)
        trainer, found = names["trainer"], []
        st = trainer.init(tp.rng.key(program.seed), names["FT"])
        states = [st]
        for k in range(2):
            try:
                with warnings.catch_warnings(record=True) as warned:
                    warnings.simplefilter("always")
                    st = trainer.fit(st, names["draw"](), **names["options"])
            except Exception as error:  # to be the same in both runs
                found.append((f"fit {k}: the error", failure(error)))
                if not hasattr(error, "state"):
                    found.append((f"fit {k}: the state", "the error has none"))
                    break
                st = error.state
            states.append(st)
            found.append((f"fit {k}: warnings", [failure(w.message) for w in warned]))
            found.append((f"fit {k}: drawn", names["drawn"]))
        history = names["history"]
        found += [("history.steps", seen(history.steps)), ("history.epochs", seen(history.epochs))]
        return [*found, *[(f"state {k}", seen(s)) for k, s in enumerate(states)], *left(names)]
