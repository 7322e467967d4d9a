"""Transformations of functions: value_and_grad, grad, vjp."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from treepie.kernels.compilations import compilations

from . import ptree, tape
from .arguments import as_tensor, described
from .ptree import Tree
from .tensor import Tensor
from .trace.active import tracing


def _check_function(name: str, f: Any) -> None:
    """Raise TypeError for other than a function, such as the loss itself."""
    if not callable(f):
        raise TypeError(
            f"{name}: f is {described(f)}, expected a function of the parameters: "
            f"{name}(lambda params: loss)(params)"
        )


def _variables(name: str, params: Tree, mixed: bool) -> tuple[list[Tensor], Callable[[list[Any]], Tree]]:
    """Return the leaves as tensors, floats of one dtype, or raise TypeError naming the path."""
    _, rebuild = ptree.flatten(params)
    leaves: list[Tensor] = []
    first = ""
    for path, value in ptree.flatten_with_paths(params):
        x = as_tensor(value)
        where = f"the leaf {path!r}" if path else "the parameter"
        if x.dtype.kind != "f":
            raise TypeError(f"{name}: {where} has dtype {x.dtype.name}, expected float32 or float64")
        if not mixed and leaves and x.dtype != leaves[0].dtype:
            raise TypeError(
                f"{name}: {where} is {x.dtype.name} but {first!r} is {leaves[0].dtype.name}, expected one "
                "float dtype (or mixed=True)"
            )
        first = first or path
        leaves.append(x)
    return leaves, rebuild


def check_scalar(name: str, loss: Any, function: str = "the function") -> Tensor:
    """Return a loss, or raise if it is not a scalar float tensor. function: that returned it."""
    if type(loss) is Tensor and loss._data.shape == () and loss._data.dtype.kind == "f":
        return loss
    if not isinstance(loss, Tensor):
        hint = " (value_and_grad_aux takes a function that returns (loss, aux))" * isinstance(loss, tuple)
        raise TypeError(
            f"{name}: {function} returned a {type(loss).__name__}, expected a scalar tensor{hint}"
        )
    if loss.size != 1 or loss.ndim:
        raise ValueError(
            f"{name}: {function} returned a tensor of shape {loss.shape}, expected a scalar of shape () "
            "(take its mean or sum)"
        )
    if loss.dtype.kind != "f":
        raise TypeError(f"{name}: {function} returned {loss.dtype.name}, expected float32 or float64")
    return loss


def _detached(tree: Tree) -> Tree:
    """Return results without their history, unless an outer gradient needs it."""
    if tape.recording():
        return tree
    return ptree.map(lambda x: Tensor(x._data, None) if isinstance(x, Tensor) else x, tree)


def _differentiate(
    name: str, f: Callable[..., Any], params: Tree, mixed: bool, has_aux: bool, dependent: bool = False
) -> tuple[Tensor, Tree, Any]:
    """Return f's result, its gradient and its aux. dependent: raise where f depends on no parameter."""
    leaves, rebuild = _variables(name, params, mixed)
    with compilations.watch():
        with tape.trace() as number:
            variables = [tape.leaf(x, number) for x in leaves]
            result = f(rebuild(list(variables)))
            aux = None
            if has_aux:
                if not isinstance(result, tuple) or len(result) != 2:
                    raise TypeError(
                        f"{name}: the function returned {type(result).__name__}, expected (loss, aux)"
                    )
                result, aux = result
            loss = check_scalar(name, result)
        one = Tensor(np.ones((), loss.dtype), None)
        gradients = tape.backward(number, [loss], [one], variables)
    if dependent:
        check_dependent(gradients)
    grads = rebuild([or_zeros(g, x) for g, x in zip(gradients, leaves, strict=True)])
    return _detached(loss), grads, aux


def zeros_of(x: Tensor) -> Tensor:
    """Return zeros of the shape and dtype of x."""
    return Tensor(np.zeros(x.shape, x.dtype), None)


def or_zeros(g: Tensor | None, x: Tensor) -> Tensor:
    """Return a gradient of x, zeros for none."""
    return zeros_of(x) if g is None else g


def value_and_grad(f: Callable[[Tree], Tensor], mixed: bool = False) -> Callable[[Tree], tuple[Tensor, Tree]]:
    """Return a function of params that returns f(params) and its gradient.

    f: takes a tree of float tensors, returns a scalar float tensor. It may close over tensors, use
        Python control flow, and take gradients itself.
    mixed: allow float32 and float64 leaves in one tree.

    The gradient is a tree like params. The function raises TypeError for leaves of other dtypes, TypeError or
    ValueError where f does not return a scalar float.

    >>> import treepie as tp
    >>> tp.value_and_grad(lambda p: (p["w"] * p["w"]).sum())({"w": tp.tensor([3.0])})[1]
    {'w': tensor([6.], dtype=float32)}
    """
    _check_function("value_and_grad", f)

    @functools.wraps(f)
    def wrapped(params: Tree) -> tuple[Tensor, Tree]:
        loss, grads, _ = _differentiate("value_and_grad", f, params, mixed, has_aux=False)
        return loss, grads

    return wrapped


def value_and_grad_aux(
    f: Callable[[Tree], tuple[Tensor, Any]], mixed: bool = False
) -> Callable[[Tree], tuple[Tensor, Tree, Any]]:
    """Return a function of params that returns (loss, gradient, aux).

    f: takes a tree of float tensors, returns (loss, aux): a scalar float tensor and anything.
    mixed: allow float32 and float64 leaves in one tree.

    Tensors in aux are constants: no gradient passes through them. Raises as `value_and_grad` does.

    >>> import treepie as tp
    >>> f = tp.value_and_grad_aux(lambda x: (x * x, "aux"))
    >>> f(tp.tensor(3.0))
    (tensor(9., dtype=float32), tensor(6., dtype=float32), 'aux')
    """
    _check_function("value_and_grad_aux", f)

    @functools.wraps(f)
    def wrapped(params: Tree) -> tuple[Tensor, Tree, Any]:
        loss, grads, aux = _differentiate("value_and_grad_aux", f, params, mixed, has_aux=True)
        return loss, grads, without_history(aux)

    return wrapped


def training_gradients(f: Callable[[Tree], tuple[Tensor, Any]], params: Tree) -> tuple[Tensor, Tree, Any]:
    """Return (loss, gradient, aux) as `value_and_grad_aux` does; raise where f depends on no parameter."""
    loss, grads, aux = _differentiate("value_and_grad_aux", f, params, False, has_aux=True, dependent=True)
    return loss, grads, without_history(aux)


def check_dependent(gradients: Sequence[Tensor | None]) -> None:
    """Raise ValueError where a loss has no gradient of any parameter: a step on it would train nothing."""
    if all(g is None for g in gradients):
        raise ValueError(
            "Trainer: the loss depends on no parameter, so that a step would train nothing; expected a loss "
            "of the model's output, which has trained parameters (argmax, comparisons, stop_gradient and "
            "numpy() end the dependence)"
        )


def without_history(aux: Any) -> Any:
    """Drop the history of tensors in aux if it is a tree; return other objects unchanged."""
    if _is_empty(aux):
        return aux
    try:
        ptree.leaves(aux)
    except (TypeError, ValueError):
        return aux
    return _detached(aux)


def _is_empty(tree: Any) -> bool:
    """Whether a tree has only empty containers, as the state of most models."""
    kind = type(tree)
    if kind is dict:
        return all(map(_is_empty, tree.values()))
    return (kind is list or kind is tuple) and all(map(_is_empty, tree))


def grad(f: Callable[[Tree], Tensor], mixed: bool = False) -> Callable[[Tree], Tree]:
    """Return a function of params that returns the gradient of f, a tree like params.

    f: takes a tree of float tensors, returns a scalar float tensor.
    mixed: allow float32 and float64 leaves in one tree.

    Raises as `value_and_grad` does.

    >>> import treepie as tp
    >>> tp.grad(lambda x: x * x)(tp.tensor(3.0)).item()
    6.0
    """
    _check_function("grad", f)

    @functools.wraps(f)
    def wrapped(params: Tree) -> Tree:
        return _differentiate("grad", f, params, mixed, has_aux=False)[1]

    return wrapped


def vjp(f: Callable[..., Tree], *primals: Tree) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
    """Return f(*primals) and its pullback: cotangents of the result -> those of the primals.

    f: takes and returns trees of tensors.  primals: its arguments, trees of float tensors.

    The pullback takes a tree like the result and returns a tuple with a tree for each primal. It raises
    ValueError for a cotangent of another shape or dtype.

    >>> import treepie as tp
    >>> y, pullback = tp.vjp(lambda x: x * x, tp.tensor([1.0, 2.0]))
    >>> pullback(tp.tensor([1.0, 1.0]))[0].tolist()
    [2.0, 4.0]
    """
    active = tracing()
    if active is not None:
        active.pullbacks = True
    leaves, rebuild = _variables("vjp", list(primals), mixed=True)
    with tape.trace() as number:
        variables = [tape.leaf(x, number) for x in leaves]
        result = f(*rebuild(list(variables)))
    outputs = [as_tensor(x) for x in ptree.leaves(result)]

    def pullback(cotangents: Tree) -> tuple[Tree, ...]:
        seeds = _cotangents(result, outputs, cotangents)
        gradients = tape.backward(number, outputs, seeds, variables)
        return tuple(rebuild([or_zeros(g, x) for g, x in zip(gradients, leaves, strict=True)]))

    return _detached(result), pullback


def by_formula(formula: Callable[..., Any]) -> Callable[..., Sequence[Tensor | None]]:
    """Return the `shared` rule of an op by differentiating the same formula written in ops."""

    def rule(h: Any, ans: Any, *inputs: Tensor, **attributes: Any) -> Sequence[Tensor | None]:
        results, pullback = vjp(lambda *xs: list(formula(*xs, **attributes)), *inputs)
        return pullback([or_zeros(g, y) for g, y in zip(h, results, strict=True)])

    return rule


def _cotangents(result: Tree, outputs: Sequence[Tensor], cotangents: Tree) -> list[Tensor]:
    checked: Sequence[Any] = ptree.leaves(ptree.map(lambda _, g: g, result, cotangents))
    converted = [as_tensor(g) for g in checked]
    for out, g in zip(outputs, converted, strict=True):
        if g.shape != out.shape or g.dtype != out.dtype:
            raise ValueError(
                f"pullback: a cotangent has shape {g.shape} and dtype {g.dtype.name}, expected {out.shape} "
                f"and {out.dtype.name}"
            )
    return converted
