"""What `python -m treepie.run` starts: a script, after treepie, whose hooks end all ranks where it fails.

`python -m treepie.distributed.script` has Python's arguments: a file, -m and a module, or -c and code.
"""

from __future__ import annotations

import os
import runpy
import sys


def main() -> None:
    """Run the script as `__main__`."""
    kind, *rest = sys.argv[1:]
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[0] = ""
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    elif kind == "-m":
        sys.argv = rest
        sys.path[0] = os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *rest]
        if os.path.isfile(kind):  # a folder or an archive goes to the path by itself
            sys.path[0] = os.path.dirname(os.path.abspath(kind))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    main()
