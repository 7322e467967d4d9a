"""einsum against NumPy on random subscripts, and its errors."""

import numpy as np
import pytest

import treepie as tp

SIZES = dict(zip("abcdef", (2, 3, 1, 4, 2, 3), strict=True))


def drawn(seed):
    """Return subscripts and operands: any labels, repeated or not, with ellipses or not."""
    rng = np.random.default_rng(seed)
    hidden = tuple(int(n) for n in rng.choice([1, 2, 3], rng.integers(0, 3)))
    terms, operands, used = [], [], set()
    for _ in range(rng.integers(1, 5)):
        labels = "".join(rng.choice(list(SIZES), rng.integers(0, 4)))
        shape = [SIZES[c] for c in labels]
        if rng.random() < 0.3:
            at = int(rng.integers(0, len(labels) + 1))
            dims = [n if rng.random() < 0.8 else 1 for n in hidden[rng.integers(0, len(hidden) + 1) :]]
            shape[at:at], labels = dims, labels[:at] + "..." + labels[at:]
        used |= set(labels) - {"."}
        terms.append(labels)
        operands.append(rng.standard_normal(shape))
    text = ",".join(terms)
    dots = "..." in text
    if dots or rng.random() < 0.7:
        result = "".join(c for c in rng.permutation(sorted(used)) if rng.random() < 0.6) if used else ""
        text += "->" + ("..." if dots else "") + result
    return text, operands


@pytest.mark.parametrize("block", range(4))
def test_random_subscripts_are_numpys(block):
    for seed in range(block * 50, block * 50 + 50):
        text, operands = drawn(seed)
        want = np.einsum(text, *operands)
        got = tp.einsum(text, *operands)
        assert got.shape == want.shape, (text, [x.shape for x in operands])
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-11, err_msg=text)


def test_gradients_of_random_subscripts():
    for seed in range(200, 230):
        text, operands = drawn(seed)
        tp.check_grads(lambda *xs, text=text: tp.einsum(text, *xs), tuple(map(tp.tensor, operands)))


A, B = np.zeros((2, 3)), np.zeros((3, 4))
ERRORS = [
    (
        lambda: tp.einsum("ij,kj->ik", A, B),
        ValueError,
        r"einsum: operands have shapes \(2, 3\) and \(3, 4\),",
    ),
    (lambda: tp.einsum("ij->ij", A, B), ValueError, "einsum: 2 operands given, expected 1 for 'ij->ij'"),
    (
        lambda: tp.einsum("ijk->i", A),
        ValueError,
        "einsum: the operand 'ijk' of 'ijk->i' has 2 axes, expected",
    ),
    (lambda: tp.einsum("ij->ik", A), ValueError, "einsum: the result 'ik' of 'ij->ik', expected labels of"),
    (lambda: tp.einsum("ij->ii", A), ValueError, "einsum: the result 'ii' of 'ij->ii', expected labels of"),
    (lambda: tp.einsum("i1->i", A), ValueError, "einsum: subscripts are 'i1->i', expected letters"),
    (lambda: tp.einsum(A, B), TypeError, "einsum: subscripts are a ndarray, expected a string"),
    (lambda: tp.einsum("ij->i", A.astype(int)), TypeError, "einsum: operand 0 is int64; expected one float"),
    (
        lambda: tp.einsum("ij,jk", A, B.astype("f4")),
        TypeError,
        "einsum: operand 0 is float64, operand 1 is f",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS)
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
