"Every notebook passes `nbdev_test`; so do its slow and gpu cells, when asked for."
import pytest
from forked import Forked
from project import cells, name, notebooks

FLAGGED = [
    pytest.param(nb, flag, marks=getattr(pytest.mark, flag), id=f"{name(nb)}-{flag}")
    for nb in notebooks()
    for flag in ("slow", "gpu")
    if any(flag in c["directives"] for c in cells(nb, "code"))]


def check(nb, record_property, *flags, timeout):
    p = Forked("nbdev.test:nbdev_test", path=str(nb), n_workers=0, flags=" ".join(flags), both=True)
    status, out, _ = p.wait(timeout)
    record_property("cpu_seconds", p.cpu_seconds)
    assert status == 0 and "Success." in out, f"{name(nb)} fails under nbdev_test:\n{out[-8000:]}"


@pytest.mark.parametrize("nb", notebooks(), ids=name)
def test_notebook(nb, record_property): check(nb, record_property, timeout=540)


@pytest.mark.parametrize("nb,flag", FLAGGED)
def test_flagged(nb, flag, record_property): check(nb, record_property, flag, timeout=4 * 3600)


def test_there_are_notebooks(): assert len(notebooks()) >= 10
