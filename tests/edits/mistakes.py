"""Edits of what errors say: the layer, the batch, the name that was meant."""

from .edit import Edit

EDITS = [
    Edit(
        "layers-without-a-path",
        "api/layer/container.py",
        """                name_layer(error, paths[k], layer.name)
                raise
            states""",
        """                raise
            states""",
        "an error inside of a model does not say which layer raised it",
        "tests/test_mistakes.py -k layer",
    ),
    Edit(
        "residuals-without-a-path",
        "api/layer/container.py",
        '            name_layer(error, "layer", layer.name)',
        "            pass",
        "the path of a layer in a residual misses a part",
        "tests/test_mistakes.py -k layer",
    ),
    Edit(
        "initial-parameters-without-a-path",
        "api/layer/container.py",
        "        name_layer(error, path, layer.name)",
        "        pass",
        "an error of an initializer does not say in which layer",
        "tests/test_mistakes.py -k initial",
    ),
    Edit(
        "paths-of-the-innermost-container",
        "api/errors.py",
        '            message = f"{part}.{message}"',
        "            pass",
        "the path of a layer begins in its own container, not in the model",
        "tests/test_mistakes.py -k layer",
    ),
    Edit(
        "a-note-for-each-container",
        "api/errors.py",
        "    if inner is not None and notes:",
        "    if False:",
        "an error of a user's type gets one note for each container",
        "tests/test_mistakes.py -k users",
    ),
    Edit(
        "messages-of-users-are-replaced",
        "api/errors.py",
        "    if type(error) in _PLAIN and len(error.args) == 1 and isinstance(error.args[0], str):",
        "    if len(error.args) >= 1 and isinstance(error.args[0], str):",
        "the arguments of a user's exceptions are overwritten",
        "tests/test_mistakes.py -k users",
    ),
    Edit(
        "the-function-is-repeated",
        "api/errors.py",
        "rest if repeated else message",
        "message",
        'a message has the layer twice: "linear(4, 8): linear: x has ..."',
        "tests/test_mistakes.py -k layer",
    ),
    Edit(
        "every-type-error-is-explained",
        "api/errors.py",
        """    else:
        return None
""",
        """    else:
        reason = "wrong"
""",
        "a TypeError inside of a function is replaced by one about its arguments",
        "tests/test_mistakes.py -k inside",
    ),
    Edit(
        "batches-are-not-named",
        "api/train/loop.py",
        """                run.name_batch(error, runner)
                raise""",
        "                raise",
        "an error while training does not say in which batch",
        "tests/test_mistakes.py -k batch",
    ),
    Edit(
        "evaluations-name-no-batch",
        "api/train/checks.py",
        '        add_note(error, f"{function}: batch {number} of {len(data)}")',
        "        pass",
        "an error of evaluate does not say in which batch",
        "tests/test_mistakes.py -k batch",
    ),
    Edit(
        "interrupts-get-notes",
        "api/train/loop.py",
        """            except Exception as error:
                run.name_batch""",
        """            except BaseException as error:
                run.name_batch""",
        "Ctrl-C shows a note as if it were an error",
        "tests/test_mistakes.py -k stops",
    ),
    Edit(
        "losses-are-not-explained",
        "api/train/steps.py",
        "            check_loss_call(inputs.loss, inputs.target)",
        "            pass",
        "a loss of other arguments is Python's own error",
        "tests/test_mistakes.py -k loss",
    ),
    Edit(
        "columns-are-not-named",
        "autodiff/convert.py",
        "    if texts:",
        "    if False:",
        "a table with text does not say in which column",
        "tests/test_mistakes.py -k table",
    ),
    Edit(
        "private-names-get-suggestions",
        "api/namespace.py",
        'hint = "" if name.startswith("_") else _suggestion(package, modules, module, name)',
        "hint = _suggestion(package, modules, module, name)",
        "each look for a dunder name searches all names",
        "tests/test_mistakes.py -k names",
    ),
    Edit(
        "other-libraries-are-not-known",
        "api/namespace.py",
        "own.get(plain) or _OTHERS.get(plain) or others.get(plain)",
        "own.get(plain) or others.get(plain)",
        "tp.nn, tp.layer.Dense and tp.DataLoader get no suggestion",
        "tests/test_mistakes.py",
    ),
]
