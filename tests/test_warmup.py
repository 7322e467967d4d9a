"""`python -m treepie warmup`: kernels of all ops, compiled by all cores, for one user or for all."""

import sys

import pytest

from treepie import warmup
from treepie.__main__ import main
from treepie.kernels import cache, config

from .caching import AS_NOBODY, COUNT, names, objects, run

#: In a child: the command on two ops, since all take a minute.
COMMAND = """
from treepie import __main__, warmup
warmup.OPS = {name: warmup.OPS[name] for name in ("add", "exp")}
__main__.main([%s])
"""


def command(*arguments, **options):
    return COMMAND % ", ".join(map(repr, ("warmup", *map(str, arguments)))), options


def test_each_dtype_on_request(tmp_path):
    for arguments, dtypes in [((), "float32"), (("--dtype", "float32", "float64"), "float32 and float64")]:
        code, _ = command(*arguments)
        out, err = run(code, tmp_path, timeout=120)
        assert out.startswith(f"2 operations in {dtypes}: ")
        assert err == ""  # no bar in a file, and no lines of the processes
        stored = {p.name.rpartition("_")[0] for p in objects(tmp_path)}
        assert "exp_f32_f32_v" in stored
        assert ("exp_f64_f64_v" in stored) == ("float64" in dtypes)
    out, _ = run(code, tmp_path, timeout=120)
    assert ": 0 kernels compiled in " in out


def test_what_every_process_needs_is_compiled_too(tmp_path):
    """The loop over launches, and the helpers' loop, also where this machine has one core."""
    code, _ = command()
    run(code, tmp_path, timeout=120, NUMBA_NUM_THREADS="1")
    assert {"walk.o", "serve.o", "clock.o"} <= {p.name for p in objects(tmp_path)}
    assert run("import treepie as tp; print(tp.exp(tp.ones(9)).item)" + COUNT, tmp_path)[0].endswith("\n0\n")


def test_a_shared_folder_serves_other_users(public_folder):
    root = public_folder / "site" / "kernels"
    code, _ = command("--shared", root, "--dtype", "float64")
    out, _ = run("import os; os.umask(0o022)\n" + code, "off", timeout=120)
    assert out.splitlines()[1] == (
        f"for all users, on CPUs like this one ({config.cpu()[0]}): export TREEPIE_CACHE_DIR={root}"
    )
    (folder,) = root.iterdir()
    assert {oct(p.stat().st_mode & 0o777) for p in (root, folder)} == {"0o755"}
    assert {oct(p.stat().st_mode & 0o777) for p in folder.iterdir()} == {"0o644"}
    assert names(folder) == [p.name for p in objects(root)]
    use = "x = tp.ones(9, dtype=tp.float64); print(tp.exp(x + x).tolist()[0])"
    out, err = run(AS_NOBODY + use + COUNT, root, XDG_CACHE_HOME="/proc/nowhere")
    assert (out, err) == ("7.38905609893065\n0\n", "")


@pytest.fixture
def error(capsys, move_cache):
    """Run the command, which is refused, and return its message."""

    def refused(root, *arguments):
        move_cache(root)
        with pytest.raises(SystemExit):
            main(["warmup", *map(str, arguments)])
        return capsys.readouterr().err.splitlines()[-1]

    return refused


def test_a_folder_that_others_may_write_to_is_not_shared(tmp_path, error):
    tmp_path.chmod(0o777)
    text = error("off", "--shared", tmp_path)
    assert f"warmup: {tmp_path} cannot be shared: {tmp_path} may be written to by its group" in text
    assert names(tmp_path) == []


def test_without_a_folder_there_is_nothing_to_warm(tmp_path, error):
    assert "warmup: there is no folder for kernels: TREEPIE_CACHE_DIR is 'off'" in error("off")
    (tmp_path / "file").touch()
    assert "warmup: there is no folder for kernels: " in error(tmp_path / "file")


def test_an_unknown_dtype_is_named(tmp_path, error):
    assert "a dtype is 'float16', expected float32 or float64" in error(tmp_path, "--dtype", "float16")


def test_all_cores_compile(tmp_path, move_cache, monkeypatch):
    """Each in a process, with the cache of this one."""
    move_cache(tmp_path)
    calls = []

    class Pool(warmup.ProcessPoolExecutor):
        def __init__(self, workers, context, begin, arguments):
            calls.append((workers, context.get_start_method(), arguments))
            super().__init__(1, context, begin, arguments)

    monkeypatch.setattr(warmup, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(config, "cores", lambda: 7)
    assert list(warmup._counts([("exp", "float32")])) == [len(objects(tmp_path)) or pytest.fail("none")]
    assert calls == [(7, "spawn", (str(tmp_path),))]
    assert cache.folder() == tmp_path / cache.key()


def test_the_bar_is_for_terminals(tmp_path, move_cache, monkeypatch, capsys):
    move_cache(tmp_path)
    monkeypatch.setattr(warmup, "OPS", {"exp": warmup.OPS["exp"], "add": warmup.OPS["add"]})
    warmup.warmup(["float32"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    warmup.warmup(["float32"])
    assert "ops:   0%|          | 0/2" in capsys.readouterr().err
