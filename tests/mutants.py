"""Mutation testing: break the library in a copy of the tree, and see whether the tests notice.

python tests/mutants.py                                 all edits of `tests/edits`; prints those that survive
python tests/mutants.py NAME...                         some
python tests/mutants.py --sample 10 --date 2026-11-26   as many, chosen by a date; by default today's
python tests/mutants.py --unedited                      their tests on the tree as it is, where they pass
"""

import argparse
import datetime
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.edits import ALL  # noqa: E402

#: What a copy of the tree consists of.
_FILES = ("api", "autodiff", "kernels", "tests", "perf", "pyproject.toml", "README.md")
_WORKERS = 2
#: Seconds after which the tests of an edit are ended. A hang is noticed by anyone who runs the tests.
_TIMEOUT = 150.0
_PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:faulthandler")
_WHERE = "import treepie; from treepie.kernels import cache; print(treepie.__file__); print(cache.folder())"
#: Exit codes of pytest: all tests passed, some failed.
_PASSED, _FAILED = 0, 1


def problems(edits):
    """Return what is wrong with the edits themselves, a line for each."""
    lines = [f"{name}: the name of {n} edits" for name, n in Counter(e.name for e in edits).items() if n > 1]
    for e in edits:
        count = (ROOT / e.file).read_text(encoding="utf-8").count(e.old) if (ROOT / e.file).is_file() else 0
        if count != 1:
            lines.append(f"{e.name}: its text occurs {count} times in {e.file}, expected once")
        missing = [t for t in _test_files(e) if not (ROOT / t).is_file()]
        if missing or not _test_files(e):
            lines.append(f"{e.name}: tests are {e.tests!r}, expected files: {' '.join(missing) or 'none'}")
        if e.old == e.new or not e.breaks:
            lines.append(f"{e.name}: changes nothing, or does not say what breaks")
    return lines


def _test_files(edit):
    return [a.partition("::")[0] for a in shlex.split(edit.tests) if a.startswith("tests/")]


def sample(edits, count, date):
    """Return as many of the edits that tests must notice, chosen by a date."""
    names = sorted((e for e in edits if not e.equivalent), key=lambda e: e.name)
    return random.Random(date.isoformat()).sample(names, min(count, len(names)))


class Copy:
    """A copy of the tree in a folder, whose `treepie` a child process imports."""

    def __init__(self, folder):
        self.folder, self.tree = folder, folder / "tree"
        self.tree.mkdir(parents=True)
        for name in _FILES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.tree / name)
            else:
                shutil.copy2(ROOT / name, self.tree / name)
        # The package is api/ with kernels/ and autodiff/ in it, and comes before the installed one.
        package = folder / "path" / "treepie"
        package.mkdir(parents=True)
        for part in [*(self.tree / "api").iterdir(), self.tree / "kernels", self.tree / "autodiff"]:
            (package / part.name).symlink_to(part)

    def python(self, *arguments, timeout=_TIMEOUT, **env):
        """Run Python on the copy; return the exit code and the output, None at a timeout."""
        path = os.pathsep.join(filter(None, [str(self.folder / "path"), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.tree,
            env={**os.environ, "PYTHONPATH": path, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            text, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # with the processes that tests start
            process.communicate()
            return None, ""
        return process.returncode, text

    def locate(self):
        """Return the folder of compiled kernels; raise RuntimeError where another `treepie` is imported."""
        code, text = self.python("-c", _WHERE)
        lines = text.splitlines()
        if code or not Path(lines[-2]).is_relative_to(self.folder):
            raise RuntimeError(f"the copy in {self.folder} is not what Python imports:\n{text}")
        return Path(lines[-1])


def run(edit, work, cache, edited=True):
    """Return whether the tests notice an edit, and why: (True, ""), (False, "no test fails") ...

    cache: the folder of compiled kernels. Edits share it: those of kernels/ have another key there, and the
        name of a kernel that a formula of an op generates covers its code.
    """
    folder = work / "copies" / edit.name
    copy = Copy(folder)
    if edited:
        file = copy.tree / edit.file
        file.write_text(file.read_text(encoding="utf-8").replace(edit.old, edit.new), encoding="utf-8")
    try:
        code, text = copy.python(*_PYTEST, *shlex.split(edit.tests), TREEPIE_CACHE_DIR=str(cache))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tail = "\n".join(text.splitlines()[-15:])
    if not edited:
        return code == _PASSED, "" if code == _PASSED else tail
    if code == _PASSED:
        return False, "no test fails"
    if code == _FAILED:
        return True, ""
    if code is None or code < 0:
        return True, "it hangs" if code is None else f"it crashes: exit code {code}"
    return False, f"no test ran: exit code {code}\n{tail}"


def copy_cache(kernels, cache):
    """Copy the user's compiled kernels; the user's folder stays as it is.

    Files are linked where that is possible, since the cache replaces files and never changes them.
    """
    for folder in (cache, cache / kernels.name):
        folder.mkdir(0o700)
    for source in kernels.glob("*.o"):
        try:
            os.link(source, cache / kernels.name / source.name)
        except OSError:  # another file system
            shutil.copy2(source, cache / kernels.name / source.name)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which edits")
    parser.add_argument("--sample", type=int, metavar="N", help="as many, chosen by the date")
    parser.add_argument("--date", type=datetime.date.fromisoformat, default=datetime.date.today())
    parser.add_argument("--unedited", action="store_true", help="run their tests on the tree as it is")
    options = parser.parse_args(arguments)
    if lines := problems(ALL):
        print(*lines, sep="\n")
        return 2
    by_name = {e.name: e for e in ALL}
    if unknown := set(options.names) - set(by_name):
        parser.error(f"no edits named {', '.join(sorted(unknown))}")
    edits = [by_name[name] for name in options.names] or [e for e in ALL if not e.equivalent]
    if options.sample is not None:
        edits = sample(edits, options.sample, options.date)
    if options.unedited:
        edits = list({e.tests: e for e in edits}.values())
    return report(edits, not options.unedited)


def report(edits, edited=True):
    """Run the tests of edits, print the edits that survive, and return the exit code."""
    survivors, begin = [], time.monotonic()
    words = ("SURVIVED", "killed") if edited else ("FAILED", "passed")
    with tempfile.TemporaryDirectory(prefix="treepie-mutants-") as name:
        work = Path(name)
        copy_cache(Copy(work / "unedited").locate(), work / "cache")

        def timed(edit):
            start = time.monotonic()
            return *run(edit, work, work / "cache", edited), time.monotonic() - start

        with ThreadPoolExecutor(_WORKERS) as pool:
            try:
                for edit, (noticed, why, seconds) in zip(edits, pool.map(timed, edits), strict=True):
                    print(f"{words[noticed]:8} {seconds:5.1f} s  {edit.name}  {why}", flush=True)
                    if not noticed:
                        survivors.append(edit)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    seconds = time.monotonic() - begin
    print(f"{len(edits)} edits in {seconds:.0f} s, {len(survivors)} {words[False].lower()}")
    for e in survivors:
        print(f"\n{e.name}: {e.breaks}\n  {e.file}\n- {e.old}\n+ {e.new}\n  tests: {e.tests}")
        if e.equivalent:
            print(f"  equivalent: {e.equivalent}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
