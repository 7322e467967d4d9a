"""Edits of steps and calls that are like ones before."""

from .edit import Edit

EDITS = [
    Edit(
        "binding-of-other-memory",
        "api/train/binding.py",
        "setting = inputs.at.buffers, get_num_threads()",
        "setting = None, get_num_threads()",
        "a step writes to parameters that somebody keeps",
        "tests/test_binding.py -k keeps",
    ),
    Edit(
        "binding-of-other-threads",
        "api/train/binding.py",
        "inputs.at.buffers, get_num_threads(), state",
        "inputs.at.buffers, 0, state",
        "a change of the number of threads has no effect",
        "tests/test_binding.py -k number_of_threads",
        equivalent="results have the same bits at any number of threads",
    ),
    Edit(
        "binding-of-other-settings",
        "api/train/binding.py",
        "get_num_threads(), state.precision, state.accuracy",
        "get_num_threads()",
        "steps go on in the precision of an earlier block",
        "tests/test_binding.py -k block_that_begins",
    ),
    Edit(
        "repeat-in-another-precision",
        "autodiff/trace/repeat.py",
        "state.captures or state.precision or state.accuracy:",
        "state.captures:",
        "a product outside of a block has the block's precision",
        "tests/test_binding.py -k settings",
    ),
    Edit(
        "repeat-in-another-accuracy",
        "autodiff/trace/repeat.py",
        "op.failure is not None or state.accuracy is not None or state.captures:",
        "op.failure is not None or state.captures:",
        "a function in a block is not that of the block's accuracy",
        "tests/test_binding.py -k settings",
    ),
    Edit(
        "repeat-keeps-numbers",
        "autodiff/program/run.py",
        "            program.write_user_numbers(instance.numbers, user_numbers)\n",
        "            pass\n",
        "a number in a loss stays that of an earlier step",
        "tests/test_binding.py -k numbers_of_other",
    ),
    Edit(
        "interrupt-moves-half",
        "kernels/program.py",
        "        self.addresses[buffer] = 0  # an interrupt leaves some of the words at the old address\n",
        "",
        "after an interrupt some launches of a step use other memory than others",
        "tests/test_binding.py -k interrupt",
    ),
    Edit(
        "names-are-left",
        "autodiff/program/cache.py",
        "if child is entry]:",
        "if k == entry.key]:",
        "traces without programs stay in the tree",
        "tests/test_binding.py -k dropped",
    ),
]
