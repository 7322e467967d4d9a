"""Values that a loss or a layer reads from modules, the user's or installed ones, are read in every step."""

import importlib
import importlib.util
import sys
import sysconfig
from pathlib import Path

import pytest

from .steps import follows

SURFACES = pytest.mark.parametrize("surface", ["fit", "predict"])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that writes a package, imports it with its modules and returns it."""
    before = set(sys.modules)

    def install(name, **files):
        (tmp_path / name).mkdir()
        for file, text in {"__init__": "", **files}.items():
            (tmp_path / name / f"{file}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        for file in files:
            importlib.import_module(name if file == "__init__" else f"{name}.{file}")
        return sys.modules[name]

    yield install
    for name in [name for name in sys.modules if name.startswith("user") and name not in before]:
        del sys.modules[name]


@SURFACES
def test_an_attribute_of_a_module_in_a_package(surface, package):
    project = package(
        "userproject",
        settings="scale = 1.0",
        losses="import userproject.settings\ndef f(x): return x * userproject.settings.scale",
    )

    def change(phase):
        project.settings.scale = 1.0 + phase

    follows(surface, lambda: (project.losses.f, change))


@SURFACES
def test_an_attribute_of_a_module_in_a_closure(surface, package):
    settings = package("usersettings", __init__="scale = 1.0")

    def change(phase):
        settings.scale = 1.0 + phase

    follows(surface, lambda: (lambda x: x * settings.scale, change))


@SURFACES
def test_an_attribute_of_a_module_by_a_computed_name(surface, package):
    settings, name = package("usersettings", __init__="scale = 1.0"), "scale"
    follows(
        surface,
        lambda: (lambda x: x * getattr(settings, name), lambda phase: setattr(settings, name, 1.0 + phase)),
    )


@SURFACES
def test_a_module_that_computes_its_attributes(surface, package):
    text = "values = {'scale': 1.0}\ndef __getattr__(name): return values[name]"
    project = package(
        "userproject",
        settings=text,
        losses="from userproject import settings\ndef f(x): return x * settings.scale",
    )

    def change(phase):
        project.settings.values["scale"] = 1.0 + phase

    follows(surface, lambda: (project.losses.f, change))


@SURFACES
def test_an_import_inside_of_the_function(surface, package):
    settings = package("usersettings", __init__="scale = 1.0")

    def f(x):
        from usersettings import scale

        return x * scale

    def change(phase):
        settings.scale = 1.0 + phase

    follows(surface, lambda: (f, change))


@SURFACES
@pytest.mark.parametrize("installed", [False, True], ids=["on_the_path", "in_site_packages"])
def test_a_package_that_is_installed(surface, installed, package, monkeypatch):
    text = "scale = 1.0\ndef f(x): return x * scale"
    project = package("userpackage", __init__=text)
    if installed:
        file = Path(sysconfig.get_path("purelib")) / "userpackage" / "__init__.py"
        monkeypatch.setattr(project, "__file__", str(file))

    def change(phase):
        project.scale = 1.0 + phase

    follows(surface, lambda: (lambda x: project.f(x), change))
    follows(surface, lambda: (project.f, change))


@SURFACES
def test_a_file_that_is_named_as_one_of_the_standard_library(surface, tmp_path, monkeypatch):
    file = tmp_path / "profile.py"
    file.write_text("scale = 1.0\ndef f(x): return x * scale")
    spec = importlib.util.spec_from_file_location("profile", file)
    profile = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "profile", profile)
    spec.loader.exec_module(profile)

    def change(phase):
        profile.scale = 1.0 + phase

    follows(surface, lambda: (profile.f, change))
