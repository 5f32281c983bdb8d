"Every notebook passes `nbdev_test`; so do its slow and gpu cells, when asked for."
import sys
from pathlib import Path

import pytest
from project import ROOT, cells, name, notebooks, run

NBDEV_TEST = Path(sys.executable).parent / "nbdev_test"
FLAGGED = [pytest.param(nb, flag, marks=getattr(pytest.mark, flag), id=f"{name(nb)}-{flag}")
           for nb in notebooks() for flag in ("slow", "gpu") if any(flag in c["directives"] for c in cells(nb, "code"))]


def check(nb, *flags, timeout):
    status, out = run(NBDEV_TEST, "--path", nb, "--n_workers", 0, *flags, cwd=ROOT, timeout=timeout)
    assert status == 0 and "Success." in out, f"{name(nb)} fails under nbdev_test:\n{out[-8000:]}"


@pytest.mark.parametrize("nb", notebooks(), ids=name)
def test_notebook(nb): check(nb, timeout=540)


@pytest.mark.parametrize("nb,flag", FLAGGED)
def test_flagged(nb, flag): check(nb, "--flags", flag, timeout=4 * 3600)


def test_there_are_notebooks(): assert len(notebooks()) >= 10
