"""Options and markers: `make test` leaves out what is flagged slow or gpu; `make test-slow` and `make
test-gpu` run it."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLAGS = dict(slow="cells that really train", gpu="needs a CUDA device")
sys.path.insert(0, str(ROOT))  # this checkout's package, wherever the environment was installed from
# one thread each: pytest-xdist runs several tests at a time
os.environ |= dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
# servers of this machine are asked directly
os.environ |= dict(no_proxy="127.0.0.1,localhost", NO_PROXY="127.0.0.1,localhost")
os.umask(0o022)  # a test that becomes nobody reads what another has written
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [str(ROOT)])


def pytest_addoption(parser):
    for flag, about in FLAGS.items():
        parser.addoption(f"--{flag}", action="store_true", help=f"run what is flagged {flag}: {about}")


def pytest_configure(config):
    for flag, about in FLAGS.items(): config.addinivalue_line("markers", f"{flag}: {about}")


def pytest_collection_modifyitems(config, items):
    for item in items:
        for flag in FLAGS:
            if flag in item.keywords and not config.getoption(flag):
                item.add_marker(pytest.mark.skip(reason=f"make test-{flag}"))
    # the long ones first: the many short ones fill what is left of the time
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
