"""What `help`, editors and type checkers show of public functions: the types of parameters and results."""

import ast
import inspect
import typing
from pathlib import Path
from types import ModuleType

import pytest

import treepie as tp

#: Parameters that are no tensor operands, and may be of any type.
ANYTHING = {"comm", "dtype", "input", "input_dtype", "memo", "step"}

MODULES = {name: getattr(tp, name) for name in tp.__all__ if isinstance(getattr(tp, name), ModuleType)}


def names(module):
    """Return a module's public names: `__all__`, else those of what it defines itself."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", "").startswith(module.__name__)]
    return getattr(module, "__all__", None) or [n for n in own if not n.startswith("_")]


def public_functions():
    for name in tp.__all__:
        yield name, getattr(tp, name)
    for prefix, module in MODULES.items():
        for name in names(module):
            yield f"{prefix}.{name}", getattr(module, name)


FUNCTIONS = {
    name: f
    for name, f in public_functions()
    if callable(f)
    and not isinstance(f, type | ModuleType)
    and getattr(f, "__module__", "").startswith("treepie")
}
OPS = {name: f for name, f in vars(tp.autodiff.ops).items() if inspect.isfunction(f) and hasattr(f, "op")}
OPERATORS = {
    f"Tensor.{name}": f
    for name, f in vars(tp.Tensor).items()
    if inspect.isfunction(f) and name not in ("__init__", "__dlpack__")
}


@pytest.mark.parametrize("name", [*FUNCTIONS, *OPERATORS])
def test_every_parameter_and_the_result_are_annotated(name):
    function = FUNCTIONS.get(name) or OPERATORS[name]
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    for parameter in parameters[1:] if name in OPERATORS else parameters:
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        free = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if parameter.annotation in ("Any", typing.Any) and not free:
            assert parameter.name in ANYTHING, parameter
    assert signature.return_annotation not in (inspect.Signature.empty, "BoundArguments")


@pytest.mark.parametrize("name", OPS)
def test_annotations_of_rows_can_be_evaluated(name):
    hints = typing.get_type_hints(OPS[name])
    assert set(hints) == {*inspect.signature(OPS[name]).parameters, "return"}


def declared_methods():
    """Return the methods that `Tensor` declares for type checkers: name -> node of its source."""
    source = Path(inspect.getsourcefile(tp.Tensor)).read_text(encoding="utf-8")
    (tensor,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Tensor")
    (block,) = (n for n in tensor.body if isinstance(n, ast.If))
    return {n.name: n for n in block.body if isinstance(n, ast.FunctionDef) and not n.decorator_list}


@pytest.mark.parametrize("name", declared_methods())
def test_declared_methods_are_those_at_run_time(name):
    declared = declared_methods()[name].args
    parameters = list(inspect.signature(getattr(tp.Tensor, name)).parameters.values())[1:]
    varying = [f"*{declared.vararg.arg}"] if declared.vararg else []
    shown = [("*" if p.kind is p.VAR_POSITIONAL else "") + p.name for p in parameters]
    if not (name.startswith("__") or varying):
        defaults = [ast.literal_eval(d) for d in declared.defaults]
        assert [p.default for p in parameters if p.default is not p.empty] == defaults
    if not name.startswith("__"):  # operators take theirs by position
        assert shown == [a.arg for a in declared.args[1:]] + varying
    assert len(shown) == len(declared.args[1:]) + len(varying)


def test_signatures_of_ops():
    shown = {
        tp.exp: "(x: TensorLike, /) -> Tensor",
        tp.add: "(a: TensorLike, b: TensorLike, /) -> Tensor",
        tp.where: "(condition: TensorLike, a: TensorLike, b: TensorLike, /) -> Tensor",
        tp.sum: "(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor",
        tp.top_k: "(x: TensorLike, k: int, axis: int = -1) -> tuple[Tensor, Tensor]",
        tp.Tensor.sum: "(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor",
        tp.autodiff.ops.lstm_steps: (
            "(x: TensorLike, h0: TensorLike, c0: TensorLike, w: TensorLike, bias: TensorLike, "
            "precision: str | None = None) -> tuple[Tensor, Tensor, Tensor]"
        ),
    }
    for function, text in shown.items():
        assert str(inspect.signature(function)).replace("'", "") == text
    assert typing.get_type_hints(tp.exp) == typing.get_type_hints(tp.ravel)


def test_a_signature_says_what_can_be_passed():
    """Elementwise ops take operands by position: a keyword is refused, as the signature shows it."""
    with pytest.raises(TypeError):
        inspect.signature(tp.exp).bind(x=1.0)
    with pytest.raises(TypeError):
        tp.exp(x=1.0)


def test_ops_are_plain_functions_of_their_rows():
    """A signature costs a call nothing: the function is the one that the row makes."""
    for name in ("exp", "sum", "reshape"):
        function = getattr(tp, name)
        assert function.__code__ is function.op.caller(lambda args, kwargs: None).__code__
