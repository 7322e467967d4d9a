"""Edits of the estimators for scikit-learn."""

from .edit import Edit

_TESTS = "tests/test_sklearn.py -k"

EDITS = [
    Edit(
        "estimator-epsilon",
        "api/sklearn/solver.py",
        "        eps = epsilon * math.sqrt(v_factor)\n",
        "        eps = epsilon\n",
        "Adam's epsilon is added to the corrected root, other than in scikit-learn",
        f"{_TESTS} options_equal",
    ),
    Edit(
        "estimator-gradient-of-the-mean",
        "api/sklearn/solver.py",
        "        value = stop_gradient(value - total) + total\n",
        "        pass\n",
        "the gradient of several outputs is that of their mean, other than in scikit-learn",
        f"{_TESTS} regressor_equals",
    ),
    Edit(
        "estimator-penalty-by-rows",
        "api/sklearn/solver.py",
        "    return penalty / (float(len(out)) if weight is None else ops.sum(weight))",
        "    return penalty / float(len(out))",
        "the penalty of weighted rows is divided by their number",
        f"{_TESTS} weights_of_integers",
    ),
    Edit(
        "estimator-rate-of-another-fit",
        "api/sklearn/training.py",
        "            rate.value = before\n",
        "            pass\n",
        "a fit in a callback changes the learning rate of the one around it",
        f"{_TESTS} a_fit_in_a_callback",
    ),
    Edit(
        "estimator-mean-of-batches",
        "api/sklearn/training.py",
        "        estimator.loss_ = float(np.dot(losses, self.sizes)) / self.length\n",
        "        estimator.loss_ = float(np.mean(losses))\n",
        "a short batch has the weight of a whole one in the loss of an epoch",
        f"{_TESTS} classifier_equals",
    ),
    Edit(
        "estimator-imported-with-treepie",
        "api/namespace.py",
        "    for name, module in modules.items():\n",
        '    importlib.import_module("sklearn")\n    for name, module in modules.items():\n',
        "import treepie imports scikit-learn",
        f"{_TESTS} imports_no_scikit_learn",
    ),
]
