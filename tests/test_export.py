"""The package is what the notebooks export, the notebooks are clean: `nbdev_export` and `nbdev_clean` leave
no difference."""

import sys
from pathlib import Path

import pytest
from project import CFG, ROOT, copy_project, module_of, notebooks, run

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def remade(tmp_path_factory):
    """A copy from which every exported module was removed before exporting anew, and whose notebooks were
    cleaned."""
    top = copy_project(tmp_path_factory.mktemp("export") / "project")
    for p in (top / "hipro_nb").rglob("*.py"):
        if p != top / "hipro_nb/__init__.py": p.unlink()
    for command in ("nbdev_export", "nbdev_clean"):
        status, out = run(BIN / command, cwd=top, PYTHONPATH=top)
        assert status == 0 and "Failed" not in out, out
    return top


def files(top, pattern):
    return {
        p.relative_to(top).as_posix(): p.read_bytes()
        for p in top.glob(pattern)
        if not any(s.startswith(".") for s in p.relative_to(top).parts)}


@pytest.mark.parametrize("pattern,command", [
    ("hipro_nb/**/*.py", "make export"), ("nbs/**/*.ipynb", "make clean"), ("*.toml", "make export")])
@pytest.mark.xdist_group("export")
def test_no_difference(remade, pattern, command):
    old, new = files(ROOT, pattern), files(remade, pattern)
    assert set(old) == set(new), (
        f"only in the checkout: {sorted(set(old) - set(new))}; only made anew: {sorted(set(new) - set(old))};"
        f" run `{command}`")
    assert not [f for f in old if old[f] != new[f]], f"`{command}` changes these"


def test_one_module_per_notebook():
    modules = [m for m in map(module_of, notebooks()) if m]
    assert len(modules) == len(set(modules))


def test_version():
    assert f'__version__ = "{CFG["version"]}"' in (ROOT / "hipro_nb/__init__.py").read_text(encoding="utf-8")
