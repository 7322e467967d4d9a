"""Edits of `tp.hub`'s names, and of what BERT needs of layers."""

from .edit import Edit

EDITS = [
    Edit(
        "rename-transposes-nothing",
        "api/hub/names.py",
        "x.T if matrix else x",
        "x",
        "weights of linear layers have PyTorch's layout",
        "tests/test_hub_names.py",
    ),
    Edit(
        "rename-transposes-convolutions",
        "api/hub/names.py",
        "flipped is not None and x.ndim == 2",
        "flipped is not None and x.ndim >= 2",
        "weights of convolutions are transposed with those of linear layers",
        "tests/test_hub_names.py",
    ),
    Edit(
        "rename-stops-at-the-first-rule",
        "api/hub/names.py",
        "        name = _substituted(pattern, new, name)\n    yield name, x",
        "        yield _substituted(pattern, new, name), x\n        return\n    yield name, x",
        "a prefix and a name can not both be changed",
        "tests/test_hub_names.py",
    ),
    Edit(
        "rename-overwrites",
        "api/hub/names.py",
        "            if name in result:\n",
        "            if False:\n",
        "of two weights with one new name the last one is kept",
        "tests/test_hub_names.py -k rename_does_not_take",
    ),
    Edit(
        "assign-ignores-unexpected-names",
        "api/hub/names.py",
        "strict and (report.missing_keys or report.unexpected_keys)",
        "strict and report.missing_keys",
        "weights that the model has no use for are no error",
        "tests/test_hub_names.py",
    ),
    Edit(
        "assign-loads-no-state",
        "api/hub/names.py",
        "Vars(filled(vars.params), filled(vars.state), vars.dtype)",
        "Vars(filled(vars.params), vars.state, vars.dtype)",
        "running statistics stay those of a new model",
        "tests/test_hub_names.py",
    ),
    Edit(
        "assign-keeps-the-files-dtype",
        "api/hub/names.py",
        "    if x.dtype == like.dtype:\n        return x\n",
        "    if x.dtype.kind == like.dtype.kind:\n        return x\n",
        "a model in float32 gets weights in float64",
        "tests/test_hub_names.py",
    ),
    Edit(
        "transformer-norms-have-their-own-eps",
        "api/layer/transformer.py",
        "layer_norm(embed_dim, eps) for k",
        "layer_norm(embed_dim, *([eps] if k == 0 else [])) for k",
        "an encoder's second norm has the default eps",
        "tests/test_layer_values.py -k eps",
    ),
]
