"""Calls in processes of their own that need not import torch, open_clip and the rest again: that takes a new
Python ten seconds, and every notebook and every command needs it. A server process imports them once (third
parties' packages only, nothing of this project) and is forked for each call.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path

from project import ROOT

PRELOAD = ["torch", "torch.utils.checkpoint", "open_clip", "matplotlib.pyplot", "scipy.stats",
           "scipy.cluster.hierarchy", "sklearn.linear_model", "jaxtyping", "beartype", "fastcore.all",
           "safetensors.torch", "tqdm.auto", "IPython.display", "nbdev.test"]
_method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_context = multiprocessing.get_context(_method)
if _method == "forkserver": _context.set_forkserver_preload(PRELOAD)


def _serve(where, args, kwargs, cwd, path, out, err, cpu):
    """The child's side: calls `where` (module:name) with its streams in files; an int that it returns, or
    what it gave to `sys.exit`, is the exit status."""
    os.setsid()
    # PR_SET_PDEATHSIG: no notebook goes on when the tests are gone
    if sys.platform == "linux": ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for file, n in ((out, 1), (err, 2)): os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), n)
    sys.stdout, sys.stderr = (
        open(n, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False) for n in (1, 2))
    os.environ.pop("IN_TEST", None)
    os.chdir(cwd)
    sys.path[:] = [*path, *(p for p in sys.path if Path(p or ".").resolve() != ROOT / "tests")]
    gc.freeze()
    module, _, name = where.partition(":")
    try:
        value = getattr(importlib.import_module(module), name)(*args, **kwargs)
        sys.exit(value if isinstance(value, int) else 0)
    finally:
        atexit._run_exitfuncs()
        for s in (sys.stdout, sys.stderr): s.flush()
        Path(cpu).write_text(str(sum(os.times()[:4])), encoding="utf-8")


@functools.cache
def _ready():
    "Starts the server and waits for it, so that no call's time limit pays for its imports."
    p = _context.Process(target=int)
    p.start(); p.join()


class Forked:
    "A call in a process of its own: `pid`, `wait` for its exit status and what it wrote, then `cpu_seconds`."
    def __init__(self, where, *args, cwd=ROOT, sys_path=(), both=False, **kwargs):
        self.folder = tempfile.TemporaryDirectory(prefix="forked-")
        self.out, self.err = (os.path.join(self.folder.name, n) for n in ("out", "out" if both else "err"))
        self.cpu, self.cpu_seconds = os.path.join(self.folder.name, "cpu"), None
        _ready()
        self.process = _context.Process(
            target=_serve,
            args=(where, args, kwargs, str(cwd), [str(p) for p in sys_path], self.out, self.err, self.cpu))
        self.process.start()
        self.pid = self.process.pid

    def is_running(self): return self.process.is_alive()

    def send_signal(self, sig):
        with contextlib.suppress(ProcessLookupError): os.kill(self.pid, sig)

    def wait(self, timeout=300):
        """Exit status (negative for a signal), stdout, stderr (with `both`, all in the first); the whole
        process group ends with the time limit (status 124)."""
        late = False
        try:
            self.process.join(timeout)
            late = self.process.is_alive()
        finally:
            if self.process.is_alive():  # too late, or the tests were interrupted
                with contextlib.suppress(ProcessLookupError): os.killpg(self.pid, signal.SIGKILL)
                self.process.join()
        said = [
            Path(p).read_text(encoding="utf-8", errors="replace") if os.path.exists(p) else ""
            for p in (self.out, self.err)]
        if os.path.exists(self.cpu): self.cpu_seconds = float(Path(self.cpu).read_text(encoding="utf-8"))
        self.folder.cleanup()
        return (
            (124, said[0], said[1] + f"\nstopped after {timeout} s")
            if late
            else (self.process.exitcode, *said))
