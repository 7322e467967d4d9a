"""Layers of the activations of `tp.fn`."""

from __future__ import annotations

from typing import Any

from treepie.autodiff import Tensor, full

from .. import fn
from ..pickling import constructor
from .core import Layer, check_sizes, parametric, stateless


@constructor
def relu() -> Layer:
    """Return the layer max(x, 0).

    >>> import treepie as tp
    >>> model = tp.layer.relu()
    >>> model.apply(model.init(tp.rng.key(0)), [-1.0, 2.0])[0].tolist()
    [0.0, 2.0]
    """
    return stateless("relu", fn.relu)


@constructor
def gelu() -> Layer:
    """Return the layer x Phi(x), Phi the cumulative normal distribution (Hendrycks & Gimpel 2016).

    >>> import treepie as tp
    >>> model = tp.layer.gelu()
    >>> model.apply(model.init(tp.rng.key(0)), [0.0, 10.0])[0].tolist()
    [0.0, 10.0]
    """
    return stateless("gelu", fn.gelu)


@constructor
def silu() -> Layer:
    """Return the layer x * sigmoid(x) (Elfwing et al. 2018).

    >>> import treepie as tp
    >>> model = tp.layer.silu()
    >>> model.apply(model.init(tp.rng.key(0)), [0.0])[0].tolist()
    [0.0]
    """
    return stateless("silu", fn.silu)


@constructor
def tanh() -> Layer:
    """Return the layer tanh(x).

    >>> import treepie as tp
    >>> model = tp.layer.tanh()
    >>> model.apply(model.init(tp.rng.key(0)), [0.0])[0].tolist()
    [0.0]
    """
    return stateless("tanh", fn.tanh)


@constructor
def sigmoid() -> Layer:
    """Return the layer 1 / (1 + exp(-x)).

    >>> import treepie as tp
    >>> model = tp.layer.sigmoid()
    >>> model.apply(model.init(tp.rng.key(0)), [0.0])[0].tolist()
    [0.5]
    """
    return stateless("sigmoid", fn.sigmoid)


@constructor
def celu(alpha: float = 1.0) -> Layer:
    """Return the layer x where it is positive, alpha * (exp(x / alpha) - 1) elsewhere (Barron 2017).

    alpha: not 0, else ValueError.

    >>> import treepie as tp
    >>> model = tp.layer.celu()
    >>> model.apply(model.init(tp.rng.key(0)), [0.0, 2.0])[0].tolist()
    [0.0, 2.0]
    """
    return stateless(f"celu({alpha})", lambda x: fn.celu(x, alpha))


@constructor
def elu(alpha: float = 1.0) -> Layer:
    """Return the layer x where it is positive, alpha * (exp(x) - 1) elsewhere (Clevert et al. 2016).

    >>> import treepie as tp
    >>> model = tp.layer.elu()
    >>> model.apply(model.init(tp.rng.key(0)), [0.0, 2.0])[0].tolist()
    [0.0, 2.0]
    """
    return stateless(f"elu({alpha})", lambda x: fn.elu(x, alpha))


@constructor
def gelu_approx() -> Layer:
    """Return the layer `gelu` approximated by a tanh (Hendrycks & Gimpel 2016).

    >>> import treepie as tp
    >>> model = tp.layer.gelu_approx()
    >>> model.apply(model.init(tp.rng.key(0)), [0.0, 10.0])[0].tolist()
    [0.0, 10.0]
    """
    return stateless("gelu_approx", fn.gelu_approx)


@constructor
def glu(axis: int = -1) -> Layer:
    """Return the layer a * sigmoid(b), a and b the two halves of x along an axis (Dauphin et al. 2017).

    The output has half the size along the axis. Raises ValueError for an odd size.

    >>> import treepie as tp
    >>> model = tp.layer.glu()
    >>> model.apply(model.init(tp.rng.key(0)), [4.0, 0.0])[0].tolist()
    [2.0]
    """
    return stateless(f"glu({axis})", lambda x: fn.glu(x, axis))


@constructor
def hard_sigmoid() -> Layer:
    """Return the layer relu6(x + 3) / 6.

    >>> import treepie as tp
    >>> model = tp.layer.hard_sigmoid()
    >>> model.apply(model.init(tp.rng.key(0)), [-3.0, 0.0, 3.0])[0].tolist()
    [0.0, 0.5, 1.0]
    """
    return stateless("hard_sigmoid", fn.hard_sigmoid)


@constructor
def hard_silu() -> Layer:
    """Return the layer x * hard_sigmoid(x) (Howard et al. 2019).

    >>> import treepie as tp
    >>> model = tp.layer.hard_silu()
    >>> model.apply(model.init(tp.rng.key(0)), [-3.0, 3.0])[0].tolist()
    [-0.0, 3.0]
    """
    return stateless("hard_silu", fn.hard_silu)


@constructor
def hard_tanh() -> Layer:
    """Return the layer x limited to [-1, 1].

    >>> import treepie as tp
    >>> model = tp.layer.hard_tanh()
    >>> model.apply(model.init(tp.rng.key(0)), [-2.0, 0.5])[0].tolist()
    [-1.0, 0.5]
    """
    return stateless("hard_tanh", fn.hard_tanh)


@constructor
def leaky_relu(negative_slope: float = 0.01) -> Layer:
    """Return the layer x where it is positive, negative_slope * x elsewhere (Maas et al. 2013).

    >>> import treepie as tp
    >>> model = tp.layer.leaky_relu(0.5)
    >>> model.apply(model.init(tp.rng.key(0)), [-2.0, 3.0])[0].tolist()
    [-1.0, 3.0]
    """
    return stateless(f"leaky_relu({negative_slope})", lambda x: fn.leaky_relu(x, negative_slope))


@constructor
def log_sigmoid() -> Layer:
    """Return the layer log(sigmoid(x)), without overflow.

    >>> import treepie as tp
    >>> model = tp.layer.log_sigmoid()
    >>> model.apply(model.init(tp.rng.key(0)), [100.0])[0].tolist()
    [-3.78...e-44]
    """
    return stateless("log_sigmoid", fn.log_sigmoid)


@constructor
def log_softmax(axis: int = -1) -> Layer:
    """Return the layer x - log(sum(exp(x))) over an axis.

    >>> import treepie as tp
    >>> model = tp.layer.log_softmax()
    >>> model.apply(model.init(tp.rng.key(0)), [0.0, 0.0])[0].tolist()
    [-0.6931471824645996, -0.6931471824645996]
    """
    return stateless(f"log_softmax({axis})", lambda x: fn.log_softmax(x, axis))


@constructor
def mish() -> Layer:
    """Return the layer x * tanh(softplus(x)) (Misra 2019).

    >>> import treepie as tp
    >>> model = tp.layer.mish()
    >>> model.apply(model.init(tp.rng.key(0)), [0.0, 20.0])[0].tolist()
    [0.0, 20.0]
    """
    return stateless("mish", fn.mish)


@constructor
def relu6() -> Layer:
    """Return the layer x limited to [0, 6].

    >>> import treepie as tp
    >>> model = tp.layer.relu6()
    >>> model.apply(model.init(tp.rng.key(0)), [-1.0, 8.0])[0].tolist()
    [0.0, 6.0]
    """
    return stateless("relu6", fn.relu6)


@constructor
def selu() -> Layer:
    """Return the layer scale * elu(x, alpha), which keeps mean 0 and variance 1 (Klambauer et al. 2017).

    >>> import treepie as tp
    >>> model = tp.layer.selu()
    >>> model.apply(model.init(tp.rng.key(0)), [0.0])[0].tolist()
    [0.0]
    """
    return stateless("selu", fn.selu)


@constructor
def softmax(axis: int = -1) -> Layer:
    """Return the layer exp(x) / sum(exp(x)) over an axis.

    The losses of `tp.loss` take logits, without this layer.

    >>> import treepie as tp
    >>> model = tp.layer.softmax()
    >>> model.apply(model.init(tp.rng.key(0)), [0.0, 0.0])[0].tolist()
    [0.5, 0.5]
    """
    return stateless(f"softmax({axis})", lambda x: fn.softmax(x, axis))


@constructor
def softplus() -> Layer:
    """Return the layer log(1 + exp(x)), without overflow.

    >>> import treepie as tp
    >>> model = tp.layer.softplus()
    >>> model.apply(model.init(tp.rng.key(0)), [100.0])[0].tolist()
    [100.0]
    """
    return stateless("softplus", fn.softplus)


@constructor
def softsign() -> Layer:
    """Return the layer x / (1 + |x|).

    >>> import treepie as tp
    >>> model = tp.layer.softsign()
    >>> model.apply(model.init(tp.rng.key(0)), [1.0])[0].tolist()
    [0.5]
    """
    return stateless("softsign", fn.softsign)


@constructor
def sparse_plus() -> Layer:
    """Return the layer 0 up to -1, (x + 1)^2 / 4 up to 1, and x above, as `jax.nn.sparse_plus`.

    >>> import treepie as tp
    >>> model = tp.layer.sparse_plus()
    >>> model.apply(model.init(tp.rng.key(0)), [-2.0, 1.0])[0].tolist()
    [0.0, 1.0]
    """
    return stateless("sparse_plus", fn.sparse_plus)


@constructor
def sparse_sigmoid() -> Layer:
    """Return the layer (x + 1) / 2 limited to [0, 1], the derivative of `sparse_plus`.

    >>> import treepie as tp
    >>> model = tp.layer.sparse_sigmoid()
    >>> model.apply(model.init(tp.rng.key(0)), [-2.0, 0.0])[0].tolist()
    [0.0, 0.5]
    """
    return stateless("sparse_sigmoid", fn.sparse_sigmoid)


@constructor
def squareplus(b: float = 4.0) -> Layer:
    """Return the layer (x + sqrt(x^2 + b)) / 2, a smooth relu (Barron 2021).

    b: 0 or more, else ValueError.

    >>> import treepie as tp
    >>> model = tp.layer.squareplus()
    >>> model.apply(model.init(tp.rng.key(0)), [0.0])[0].tolist()
    [1.0]
    """
    return stateless(f"squareplus({b})", lambda x: fn.squareplus(x, b))


@constructor
def prelu(num_channels: int = 1, weight_init: float = 0.25) -> Layer:
    """Return the layer x where it is positive, weight * x elsewhere, with a learned weight (He et al. 2015).

    num_channels: 1 for one weight, or the number of channels on axis 1.  weight_init: the weights at first.

    Parameters: weight (num_channels,).

    >>> import treepie as tp
    >>> model = tp.layer.prelu()
    >>> model.apply(model.init(tp.rng.key(0)), [-2.0, 3.0])[0].tolist()
    [-0.5, 3.0]
    """
    check_sizes("layer.prelu", num_channels=num_channels)

    def params(rngs: Tensor, dtype: Any) -> dict[str, Tensor]:
        return {"weight": full((num_channels,), weight_init, dtype)}

    return parametric(f"prelu({num_channels})", params, lambda p, x: fn.prelu(x, p["weight"]))


@constructor
def swish() -> Layer:
    """Return the layer x * sigmoid(x), another name of `silu` (Ramachandran et al. 2017).

    >>> import treepie as tp
    >>> model = tp.layer.swish()
    >>> model.apply(model.init(tp.rng.key(0)), [0.0])[0].tolist()
    [0.0]
    """
    return stateless("swish", fn.silu)


@constructor
def hard_swish() -> Layer:
    """Return the layer x * hard_sigmoid(x), another name of `hard_silu`.

    >>> import treepie as tp
    >>> model = tp.layer.hard_swish()
    >>> model.apply(model.init(tp.rng.key(0)), [-3.0, 3.0])[0].tolist()
    [-0.0, 3.0]
    """
    return stateless("hard_swish", fn.hard_silu)
