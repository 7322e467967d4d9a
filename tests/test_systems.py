"""Calls that are others on Windows and macOS, with stand-ins for what those systems have."""

import ctypes
import os
from types import SimpleNamespace

import pytest

from treepie.checkpoint import files


class Windows:
    """The names of `os` that flushing and asking for a process need, as Windows has them."""

    name, O_RDONLY, O_RDWR = "nt", os.O_RDONLY, os.O_RDWR
    close = staticmethod(os.close)

    def __init__(self):
        self.flushed = 0

    def open(self, path, flags):
        if path.is_dir():
            raise PermissionError(13, "Permission denied")
        self.flags = flags
        return os.open(path, flags)

    def fsync(self, descriptor):
        if self.flags != os.O_RDWR:
            raise OSError(9, "Bad file descriptor")
        self.flushed += 1

    def kill(self, process, signal):
        raise AssertionError("sends Ctrl-C")


class Kernel32:
    """Process 10 runs, 11 has ended, 12 does not exist, 13 may not be asked."""

    def __init__(self):
        self.error, self.closed = 0, []
        self.OpenProcess = self.Open(self)

    class Open:
        restype = None

        def __init__(self, library):
            self.library = library

        def __call__(self, right, inherit, process):
            self.library.error = {12: 87, 13: 5}.get(process, 0)
            return {10: 1, 11: 2}.get(process)

    def GetExitCodeProcess(self, handle, code):
        code._obj.value = 259 if handle.value == 1 else 0

    def CloseHandle(self, handle):
        self.closed.append(handle.value)


def test_windows_flushes_files_alone(monkeypatch, tmp_path):
    windows = Windows()
    monkeypatch.setattr(files, "os", windows)
    monkeypatch.setattr(files, "fcntl", None)
    file = tmp_path / "file"
    file.write_bytes(b"x")
    files.flush(file)
    files.flush(tmp_path)
    assert windows.flushed == 1


def test_macos_flushes_the_drive_too(monkeypatch, tmp_path):
    calls = []

    def full(descriptor, what):
        calls.append(what)

    def refused(descriptor, what):
        raise OSError(45, "Operation not supported")

    monkeypatch.setattr(files, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=full))
    files.flush(tmp_path)
    assert calls == [51]
    monkeypatch.setattr(files, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=refused))
    files.flush(tmp_path)


@pytest.mark.parametrize(("process", "alive"), [(10, True), (11, False), (12, False), (13, True)])
def test_windows_asks_for_a_process_without_a_signal(monkeypatch, process, alive):
    library = Kernel32()
    monkeypatch.setattr(files, "os", Windows())
    monkeypatch.setattr(ctypes, "WinDLL", lambda name, use_last_error: library, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: library.error, raising=False)
    assert files._alive(process) is alive
    assert library.closed == {10: [1], 11: [2]}.get(process, [])
