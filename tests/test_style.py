"""What no linter checks: sizes, the wheel's dependencies, words that kernels must not contain."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(p for d in ("kernels", "autodiff", "api", "tests", "perf") for p in (ROOT / d).rglob("*.py"))
LIBRARY = [p for p in FILES if p.parts[len(ROOT.parts)] in ("kernels", "autodiff", "api")]


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_are_at_most_400_lines(path):
    assert path.read_text(encoding="utf-8").count("\n") <= 400


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_functions_are_at_most_60_lines_and_kernels_take_at_most_8_arguments(path):
    """Beyond the two that every kernel has, which chunk to begin and which to end with."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            # The docstring of a public function grows with its arguments, and is read on its own.
            docstring = (ast.get_docstring(node, clean=False) or "").count("\n")
            assert node.end_lineno - node.lineno - docstring < 60, node.name
            if any(isinstance(d, ast.Name) and d.id == "kernel" for d in node.decorator_list):
                assert len(node.args.args) <= 2 + 8, node.name


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_no_fastmath_and_no_environment_outside_config(path):
    text = path.read_text(encoding="utf-8")
    if not path.name.startswith("own") and path.parts[-2] != "own":  # where it is an option of users' kernels
        assert "fastmath" not in text
    if path.parts[-2] != "kernels":
        assert "os.environ" not in text


def test_importing_imports_nothing_slow():
    """Its time is measured in `perf/start.py`; what would make it long is Numba, and what only some need."""
    heavy = ("numba", "matplotlib", "scipy", "sklearn", "tqdm", "multiprocessing")
    code = f"import sys, treepie; print(*[m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert result.stdout.split() == []


def test_every_public_op_is_public_in_treepie_too():
    """But for those that only other ops and layers call."""
    import treepie
    from treepie.autodiff import ops

    inner = {
        *("At", "getitem", "batch_matmul", "strided_slice_grad", "strided_slice", "scatter_add"),
        "weighted_cross_entropy",
        *("cross_entropy_rows", "cross_entropy_backward", "softmax_backward", "relu", "gelu", "silu"),
        *("softplus", "add_at", "strided_slice_update", "scatter", "ravel_multi_index"),
        *("scatter_add_along_axis", "vector_norm", "linear", "embedding_linear"),
        *("check_range", "rank_sum"),
        *("convolution", "convolution_bias", "convolution_input", "convolution_weight"),
        *("max_pool", "max_pool_backward"),
        *("attention", "attention_backward", "rope", "lstm_steps", "lstm_backward"),
        *("gru_steps", "gru_backward", "rnn_steps", "rnn_backward"),
        *("flat_slice",),
    }
    names = {n for n, v in vars(ops).items() if not n.startswith("_") and not isinstance(v, ModuleType)}
    assert names - inner - set(treepie.__all__) == set()


def nesting(node, depth=0):
    """Return how deep the blocks of a function are nested; an `elif` is no deeper than its `if`."""
    blocks, deepest = (ast.For, ast.While, ast.If, ast.With, ast.Try), depth
    for child in ast.iter_child_nodes(node):
        follows = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, nesting(child, depth + (isinstance(child, blocks) and not follows)))
    return deepest


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_blocks_are_nested_at_most_4_deep(path):
    """Loops over the tiles of a kernel may go one deeper."""
    most = 5 if path.parts[len(ROOT.parts)] == "kernels" else 4
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert nesting(node) <= most, node.name
