"""Printed models, tables in notebooks, and what completes after a dot."""

import html.parser
import inspect
import types

import numpy as np
import pytest

import treepie as tp
from treepie.kernels.compilations import compilations

from .test_reprs import LAYER, MODEL, OPTIM, fitted


# ---- printed models
def test_a_printed_model_is_the_tree_of_its_layers():
    model = LAYER.sequential(
        [
            LAYER.linear(3, 4),
            LAYER.compose(LAYER.batch_norm(4), LAYER.relu()),
            *[LAYER.residual(LAYER.sequential([LAYER.linear(4, 4), LAYER.tanh()])) for _ in range(3)],
            LAYER.relu(),
            LAYER.relu(),
        ]
    )
    assert str(model) == (
        "layer                               parameters\n"
        "----------------------------------------------\n"
        "sequential                                  84\n"
        "  0: linear(3, 4)                           16\n"
        "  1: compose                                 8\n"
        "    left: batch_norm(4)                      8\n"
        "    right: relu                              0\n"
        "  2 to 4: 3 x residual(sequential)      3 x 20\n"
        "    sequential                              20\n"
        "      0: linear(4, 4)                       20\n"
        "      1: tanh                                0\n"
        "  5: relu                                    0\n"
        "  6: relu                                    0"
    )
    assert str(LAYER.linear(3, 4)) == "linear(3, 4): 16 parameters"


def test_printing_and_summary_allocate_no_parameters_and_compile_nothing():
    side = 10**7  # 400 TB, more than an address space
    model = LAYER.sequential([LAYER.linear(side, side), LAYER.gelu(), LAYER.embedding(side, side)])
    before = compilations.count + compilations.loaded
    assert "100,000,010,000,000" in str(model)
    table = tp.layer.summary(LAYER.linear(side, side), (64, side))
    assert f"(64, {side})" in table
    assert compilations.count + compilations.loaded == before


def test_a_container_of_a_users_own_shows_its_layers():
    inner = {"head": LAYER.linear(3, 2), "tail": LAYER.linear(2, 1)}

    def init(rngs, dtype):
        parts = {name: layer.init(rngs, dtype) for name, layer in inner.items()}
        return LAYER.Vars({n: v.params for n, v in parts.items()}, {}, dtype)

    model = LAYER.Layer(init, lambda *args, **kwargs: None, "mine")
    assert [line.split() for line in str(model).splitlines()[2:]] == [
        ["mine", "11"],
        ["head:", "linear(3,", "2)", "8"],
        ["tail:", "linear(2,", "1)", "3"],
    ]


def orthogonal():
    """Return a layer whose parameters NumPy computes."""

    def init(rngs, dtype):
        q, _ = np.linalg.qr(np.asarray(tp.rng.normal(rngs, (3, 3))))
        return LAYER.Vars({"w": tp.tensor(q, dtype)}, {}, dtype)

    return LAYER.Layer(init, lambda params, state, x, **_: (x @ params["w"], state), "orthogonal")


def test_models_that_read_values_are_shown_too():
    model = LAYER.sequential([orthogonal(), LAYER.relu()])
    assert [line.split()[-1] for line in str(model).splitlines()[2:]] == ["9", "9", "0"]
    assert str(tp.layer.summary(model, (2, 3))).splitlines()[-1].split() == ["total", "9"]

    def apply(params, state, x, **_):
        return (x if float(x.sum()) > 0 else -x), state

    reader = LAYER.Layer(lambda rngs, dtype: LAYER.Vars({}, {}, dtype), apply, "reader")
    assert "(2, 3)" in tp.layer.summary(reader, (2, 3))


def test_a_model_that_can_not_be_initialized_is_its_name():
    def init(rngs, dtype):
        raise RuntimeError

    assert str(LAYER.Layer(init, lambda: None, "broken")) == "Layer(broken)"


def test_printing_changes_no_gradient_and_no_trace():
    def loss(params):
        str(MODEL)
        return (params * params).sum()

    assert tp.grad(loss)(tp.tensor([3.0])).tolist() == [6.0]
    assert tp.jit(loss)(tp.tensor([3.0])).item() == 9.0


def test_summary_of_several_inputs():
    def apply(params, state, x, **_):
        return tp.concatenate([x["a"], x["ids"].astype(tp.float32)], axis=1), state

    model = LAYER.Layer(lambda rngs, dtype: LAYER.Vars({}, {}, dtype), apply, "both")
    types_ = {"a": tp.float32, "ids": tp.int32}
    assert "(2, 8)" in tp.layer.summary(model, {"a": (2, 3), "ids": (2, 5)}, types_)

    def pair(params, state, x, **_):
        return x[0] @ x[1], state

    assert "(2, 4)" in tp.layer.summary(LAYER.Layer(model._init, pair), ((2, 3), (3, 4)))


# ---- notebooks
class Parser(html.parser.HTMLParser):
    """Collects the cells of a table, and checks that tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def cells(x):
    parser = Parser()
    parser.feed(x._repr_html_())
    parser.close()
    assert parser.open == []
    return parser.cells


def test_html():
    _, st, history = fitted()
    assert cells(st) == ["step", "2", "parameters", "16", "optimizer", "adam", "dtype", "float32"]
    assert cells(history)[:4] == ["epoch", "step", "loss", "accuracy"]
    assert cells(history)[4:7] == ["1", "2", "1.386"]
    assert cells(tp.History()) == ["History(epochs=0, steps=0)"]
    table = cells(st.vars)
    assert table[:4] == ["path", "shape", "dtype", "elements"]
    assert table[4:8] == ["params.weight", "(3, 4)", "float32", "12"]
    assert cells(MODEL)[:4] == ["layer", "parameters", "sequential", "24"]
    assert cells(tp.layer.summary(MODEL, (1, 3)))[-3:] == ["total", "", "24"]
    assert cells(LAYER.relu()) == ["relu: 0 parameters"]


def test_html_is_escaped():
    leaf = LAYER.linear(3, 4)
    model = LAYER.Layer(leaf._init, leaf._apply, "<script>&")
    for x in (model, LAYER.sequential([model]), tp.layer.summary(LAYER.sequential([model]), (1, 3))):
        assert "<script>" not in x._repr_html_()
        assert any("<script>&" in cell for cell in cells(x))


def test_many_rows_are_cut():
    history = tp.History()
    for k in range(100):
        history.add_step(k + 1, 1.0)
        history.end_epoch(k + 1, {})
    assert cells(history)[-3] == "100"
    assert len(cells(history)) == 3 * 31
    many = LAYER.Vars({f"p{k}": tp.ones(1) for k in range(70)}, {}, tp.float32)
    assert cells(many)[-4] == "and 20 more"


def test_a_summary_shows_itself_in_an_interactive_session():
    table = tp.layer.summary(MODEL, (1, 3))
    assert isinstance(table, str)
    assert repr(table) == str(table) == f"{table}"


# ---- completion
PUBLIC = [
    tp,
    *[getattr(tp, n) for n in tp.__all__ if isinstance(getattr(tp, n), types.ModuleType)],
    OPTIM.schedule,
]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda m: m.__name__)
def test_modules_complete_to_public_names(module):
    optional = getattr(module, "_OPTIONAL", ())  # imported where they are first used
    assert dir(module) == sorted([*module.__all__, *optional])
    names = module.__all__
    assert all(hasattr(module, name) for name in names)
    foreign = [
        n
        for n in names
        if isinstance(getattr(module, n), types.ModuleType) and getattr(module, n) not in PUBLIC
    ]
    assert foreign == []


def test_signatures_have_the_names_of_types():
    for name in tp.__all__:
        function = getattr(tp, name)
        if isinstance(function, types.FunctionType):
            assert "ForwardRef" not in str(inspect.signature(function)), name
    assert "Union" not in str(inspect.signature(tp.clip))
