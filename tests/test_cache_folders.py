"""Kernels come from folders that nobody else may write to, on machines that are shared with others."""

import errno
import os
import re
import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import pytest

import treepie as tp
from treepie.kernels import cache

from .caching import ANSWER, ROOT, USE, answer, chown, modes, names, objects, run

as_root = pytest.mark.skipif(not ROOT, reason="only root gives a file to another user")


# ---- who may write
def test_new_folders_are_private(tmp_path):
    root = tmp_path / "a" / "b"
    run(f"import os; os.umask(0)\n{USE}", tmp_path, TREEPIE_CACHE_DIR=None, XDG_CACHE_HOME=str(root))
    (file, *_) = objects(root)
    assert oct(file.stat().st_mode & 0o777) == "0o600"
    assert modes(file.parent, tmp_path / "a") == {"0o700"}


UNTRUSTED = {
    "the group may write to the root": lambda key: key.parent.chmod(0o770),
    "all may write to the root": lambda key: key.parent.chmod(0o1777),
    "the group may write to the folder of the key": lambda key: key.chmod(0o720),
    "all may write to the folder of the key": lambda key: key.chmod(0o702),
    "the root is another user's": lambda key: chown(key.parent),
    "the folder of the key is another user's": lambda key: chown(key),
}


@pytest.mark.parametrize("case", UNTRUSTED)
def test_a_folder_that_others_may_write_to_is_not_used(case, tmp_path, move_cache):
    if "another" in case and not ROOT:
        pytest.skip("only root gives a folder to another user")
    root = tmp_path / "root"
    move_cache(root)
    assert answer("forged", 666) == 666
    UNTRUSTED[case](root / cache.key())
    before = names(root / cache.key())
    move_cache(root)
    with pytest.warns(RuntimeWarning, match="treepie keeps compiled kernels in memory only") as caught:
        assert (answer("forged", 42), answer("another", 43)) == (42, 43)
    (warning,) = caught
    text = str(warning.message)
    reason = (
        "belongs to another user, number 65534" if "another" in case else "may be written to by its group"
    )
    assert str(root) in text
    assert reason in text
    assert "Set TREEPIE_CACHE_DIR to a folder that you alone may write to, or to 'off'" in text
    assert names(root / cache.key()) == before
    info = tp.cache_info()
    assert (info.folder, info.writable, info.fallback) == (None, False, None)
    assert reason in info.reason


def test_an_untrusted_root_gets_no_folder(tmp_path, move_cache):
    tmp_path.chmod(0o1777)
    move_cache(tmp_path)
    assert cache.folder() is None
    assert names(tmp_path) == []


@pytest.mark.parametrize("change", [chown, lambda file: file.chmod(0o666), lambda file: file.chmod(0o620)])
def test_an_entry_that_others_may_write_to_is_compiled_again(change, tmp_path, move_cache):
    if change is chown and not ROOT:
        pytest.skip("only root gives a file to another user")
    move_cache(tmp_path)
    answer("forged", 666)
    change(cache.folder() / "forged.o")
    assert answer("forged", 42) == 42
    assert answer("forged", 0) == 42


@as_root
def test_root_does_not_run_kernels_of_others(tmp_path, move_cache):
    """It did, without a warning."""
    move_cache(tmp_path / "root")
    answer("forged", 666)
    for path in (tmp_path / "root", *(tmp_path / "root").rglob("*")):
        chown(path)
    move_cache(tmp_path / "root")
    with pytest.warns(RuntimeWarning, match="belongs to another user, number 65534"):
        assert answer("forged", 42) == 42


# ---- entries
def test_an_entry_of_another_name_is_refused(tmp_path, move_cache):
    """The process crashed: the linker found no function of that name."""
    move_cache(tmp_path)
    answer("first", 1)
    shutil.copy(cache.folder() / "first.o", cache.folder() / "second.o")
    assert answer("second", 2) == 2


def test_an_entry_of_another_key_is_refused(tmp_path, move_cache, monkeypatch):
    move_cache(tmp_path)
    answer("first", 1)
    entry = cache.folder() / "first.o"
    monkeypatch.setattr(cache, "key", lambda: "another")
    move_cache(tmp_path)
    shutil.copy(entry, cache.folder() / "first.o")
    assert cache.folder().name == "another"
    assert answer("first", 2) == 2


def device(path):
    if not ROOT:
        pytest.skip("only root makes a device")
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero, which has no end


SPECIAL = {
    "a FIFO": os.mkfifo,
    "a folder": os.mkdir,
    "a device": device,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "an empty file": Path.touch,
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_nothing_hangs_on_what_is_no_regular_file(kind, tmp_path):
    """A FIFO blocked."""
    run(ANSWER + "assert cache.folder()", tmp_path)
    (folder,) = tmp_path.iterdir()
    SPECIAL[kind](folder / "special.o")
    _, err = run(ANSWER + "assert answer('special', 7) == 7", tmp_path, timeout=60)
    if kind == "a folder":  # which no file can replace
        assert err.count("RuntimeWarning") == 1
    else:
        assert err == ""
        assert (folder / "special.o").is_file()
        assert run(ANSWER + "assert answer('special', 0) == 7", tmp_path)[1] == ""
    assert names(folder) == ["special.o"]


# ---- writes that fail
def fail(number):
    def failing(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return failing


@pytest.mark.parametrize("step", ["mkstemp", "write", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_failed_write_gives_one_warning_and_leaves_nothing(step, number, tmp_path, move_cache, monkeypatch):
    move_cache(tmp_path)
    folder = cache.folder()
    if step == "write":
        monkeypatch.setattr(cache, "open", lambda descriptor, mode: Full(descriptor, number), raising=False)
    else:
        monkeypatch.setattr(tempfile if step == "mkstemp" else os, step, fail(number))
    with pytest.warns(RuntimeWarning, match=re.escape(f"{folder}: {os.strerror(number)}")) as caught:
        assert (answer("first", 1), answer("second", 2)) == (1, 2)
    assert len(caught) == 1
    assert names(folder) == []
    monkeypatch.undo()
    assert answer("second", 3) == 3
    assert names(folder) == ["second.o"]


class Full:
    """A file on a full disk."""

    def __init__(self, descriptor, number):
        self.file, self.write = os.fdopen(descriptor, "wb"), fail(number)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def test_an_interrupted_write_leaves_nothing(tmp_path, move_cache, monkeypatch):
    move_cache(tmp_path)

    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        answer("first", 1)
    assert names(cache.folder()) == []


def test_a_full_disk(public_folder):
    """A real one, of 64 kB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(public_folder)]
    if not ROOT or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        code = ANSWER + "cache.folder()\nopen(f'{cache.folder()}/large', 'wb').write(bytes(2))\n"
        run(code, public_folder)
        (folder,) = public_folder.iterdir()
        with pytest.raises(OSError, match="No space"), open(folder / "large", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        out, err = run(ANSWER + "print(answer('first', 1), answer('second', 2))", public_folder)
        assert out == "1 2\n"
        assert err.count("RuntimeWarning") == 1
        assert "No space left on device" in err
        assert names(folder) == ["large"]
    finally:
        subprocess.run(["umount", str(public_folder)], check=True)


def test_old_temporary_files_are_removed(tmp_path, move_cache):
    """Those of processes that were killed: others may be written at this moment."""
    move_cache(tmp_path)
    folder = cache.folder()
    for name, age in [("tmpold", 4000), ("tmpnew", 3000), ("tmp_kernel.o", 4000), ("other", 4000)]:
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    assert cache.read("first") is None
    assert "tmpold" in names(folder)
    answer("first", 1)
    assert names(folder) == ["first.o", "other", "tmp_kernel.o", "tmpnew"]


# ---- off, and what users see
def test_off_keeps_kernels_in_memory_without_a_warning(tmp_path):
    code = ANSWER + "import treepie as tp\nprint(answer('first', 1))\n"
    code += "print(tp.cache_info())\ntp.show_config()"
    out, err = run(code, "off", XDG_CACHE_HOME=str(tmp_path))
    assert out.startswith(
        "1\nCacheInfo(new kernels stay in memory: TREEPIE_CACHE_DIR is 'off'; "
        "1 compiled and 0 loaded in this process)\n"
    )
    assert "kernel cache  none, kernels stay in memory: TREEPIE_CACHE_DIR is 'off'\n" in out
    assert err == ""
    assert names(tmp_path) == []


def test_info(tmp_path, move_cache):
    move_cache(tmp_path)
    before = tp.cache_info()
    assert (before.folder, before.writable, before.fallback) == (tmp_path / cache.key(), True, None)
    assert (before.entries, before.bytes, before.reason) == (0, 0, "")
    answer("first", 1)
    answer("first", 1)
    info = tp.cache_info()
    assert (info.entries, info.bytes) == (1, (info.folder / "first.o").stat().st_size)
    assert (info.compiled - before.compiled, info.loaded - before.loaded) == (1, 1)
    counts = f"{info.compiled} compiled and {info.loaded} loaded in this process"
    assert repr(info) == f"CacheInfo({info.folder}; 1 kernel of 0.0 MB; {counts})"


def test_a_relative_folder_stays_where_it_is(tmp_path, move_cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    move_cache("kernels")
    assert cache.folder() == tmp_path / "kernels" / cache.key()


# ---- many processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_32_processes_on_an_empty_cache(tmp_path):
    """All compile the same kernels at once. They are forked from one process, for speed, whose memory has the
    loop over launches, which takes Numba a second."""
    code = f"""
import os, treepie as tp
from treepie.kernels import cache
x = -tp.tensor([1.0, 2.0, 4.0])
cache.move({str(tmp_path)!r})
gate = os.pipe()
children = []
for _ in range(32):
    child = os.fork()
    if child == 0:
        os.close(gate[1])
        os.read(gate[0], 1)  # until the parent closes its end
        values = (tp.exp(x * 2.0) + x).tolist()
        os.write(1, f"{{values}} {{tp.cache_info().entries}}\\n".encode())
        os._exit(0)
    children.append(child)
os.close(gate[1])
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""
    out, err = run(code, "off", timeout=120)
    (line,) = set(out.splitlines())
    assert out.count(line) == 32
    assert line.endswith("] 3")
    (folder,) = tmp_path.iterdir()
    assert [Path(name).suffix for name in names(folder)] == [".o"] * 3
    assert "Warning" not in err


def test_reading_asks_for_no_more_than_it_opens(tmp_path, move_cache, monkeypatch):
    """A process with a warm cache opens entries; it looks at a folder once."""
    move_cache(tmp_path)
    answer("first", 1)
    move_cache(tmp_path)
    stats = []
    original = os.stat
    monkeypatch.setattr(os, "stat", lambda *a, **k: stats.append(a[0]) or original(*a, **k))
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert answer("first", 2) == 1
    mine = [p for p in stats if isinstance(p, Path) and p.is_relative_to(tmp_path)]
    assert sorted(set(mine)) == sorted({tmp_path, tmp_path / cache.key()})
    assert all(not str(p).endswith(".o") for p in mine)
