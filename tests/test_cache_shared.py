"""A folder of kernels that a process can read but not write: a site's, for all of its users."""

import os

import pytest

from treepie.kernels import cache

from .caching import ANSWER, AS_NOBODY, NOBODY, ROOT, answer, chown, modes, names, objects, run


@pytest.fixture
def shared(public_folder, move_cache):
    """A folder with one kernel, of root or of this user, that others and this user can only read."""
    move_cache(public_folder / "shared")
    answer("first", 1)
    cache.share()
    if not ROOT:
        for path in (cache.folder(), public_folder / "shared"):
            path.chmod(0o555)
    (public_folder / "home").mkdir(mode=0o700)
    if ROOT:
        chown(public_folder / "home")
    yield public_folder / "shared"
    for path in ((public_folder / "shared"), *(public_folder / "shared").iterdir()):
        path.chmod(0o755)


def test_a_shared_folder_is_readable_by_all(shared):
    (file,) = objects(shared)
    assert oct(file.stat().st_mode & 0o777) == "0o644"
    assert modes(file.parent, shared) == {"0o755" if ROOT else "0o555"}


COUNTS = "print(compilations.count, compilations.loaded)\n"


def test_a_read_only_folder_is_used_and_what_it_lacks_goes_to_the_users(shared, public_folder):
    """It was ignored: each process compiled everything, in 7.6 s instead of 0.9."""
    env = {"XDG_CACHE_HOME": str(public_folder / "home")}
    code = ANSWER + AS_NOBODY + "print(answer('first', 10))\n" + COUNTS
    assert run(code, shared, **env) == ("1\n0 1\n", "")
    assert names(public_folder / "home") == []  # nothing is missing, so nothing is made
    code += "print(answer('second', 2))\n" + COUNTS + "from treepie import machine\n"
    code += "print(tp.cache_info(), machine._where(tp.cache_info()))\n"
    out, err = run(code, shared, **env)
    assert out.startswith("1\n0 1\n2\n1 1\n")
    own = public_folder / "home" / "treepie" / cache.key()
    assert (
        f"CacheInfo({shared / cache.key()}; read-only, new kernels go to {own}; 1 kernel of 0.0 MB; " in out
    )
    assert f"{shared / cache.key()} (read-only), new kernels go to {own}\n" in out
    assert err == ""
    out, err = run(code, shared, **env)
    assert out.startswith("1\n0 1\n2\n0 2\n")
    assert err == ""


def test_a_read_only_folder_without_a_home(shared):
    code = ANSWER + AS_NOBODY + "print(answer('first', 10))\n"
    env = {"XDG_CACHE_HOME": "/proc/nowhere"}
    assert run(code, shared, **env) == ("1\n", "")
    out, err = run(code + "print(answer('second', 2), answer('third', 3))\n" + COUNTS, shared, **env)
    assert out == "1\n2 3\n2 1\n"
    assert err.count("RuntimeWarning") == 1


def test_a_read_only_folder_of_another_version(shared, public_folder):
    (shared).chmod(0o755)
    (shared / cache.key()).rename(shared / "another-key")
    if not ROOT:
        shared.chmod(0o555)
    code = ANSWER + AS_NOBODY + "print(answer('first', 10))\nprint(cache.folder())"
    own = public_folder / "home" / "treepie" / cache.key()
    assert run(code, shared, XDG_CACHE_HOME=str(public_folder / "home")) == (f"10\n{own}\n", "")


@pytest.mark.skipif(not ROOT, reason="only root gives a file to another user")
def test_a_read_only_folder_of_a_stranger_is_not_used(shared, public_folder):
    """Neither root's nor this user's."""
    for path in (shared, *shared.rglob("*")):
        os.chown(path, NOBODY - 1, NOBODY - 1)
    code = ANSWER + AS_NOBODY + "print(answer('first', 10))\n"
    out, err = run(code, shared, XDG_CACHE_HOME=str(public_folder / "home"))
    assert out == "10\n"
    assert err.count("RuntimeWarning") == 1
    assert f"{shared} belongs to another user, number {NOBODY - 1}" in err
