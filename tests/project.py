"""What the project's tests share: where things are, cells of a notebook, a copy to try things in, commands
with a time limit."""

import ast
import functools
import json
import os
import re
import shutil
import signal
import subprocess
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS, LIB = ROOT / "nbs", ROOT / "hipro_nb"

_config = ConfigParser(delimiters=["="])
_config.read(ROOT / "settings.ini", encoding="utf-8")
CFG = _config["DEFAULT"]


def text(x): return "".join(x) if isinstance(x, list) else x or ""


def name(path): return Path(path).relative_to(NBS).as_posix()


def number(nb): return int(re.match(r"\d*", Path(nb).name)[0] or 1000)


def notebooks():
    "Every notebook that nbdev sees, in reading order; index comes last, since it uses everything."
    found = [p for p in NBS.rglob("*.ipynb") if not any(s[0] in "._" for s in p.relative_to(NBS).parts)]
    return sorted(found, key=lambda p: (number(p), p.as_posix()))


def chapters(): return [p for p in notebooks() if p.name != "index.ipynb"]


def cells(nb, kind=None):
    "Cells as dicts with `source` as one string, `directives` as a dict and `outputs`."
    res = []
    for i, c in enumerate(json.loads(Path(nb).read_text(encoding="utf-8"))["cells"]):
        src = text(c["source"])
        dirs = (
            dict(re.findall(r"^#\|\s*([\w-]+):?[ \t]*(.*?)[ \t]*$", src, re.M))
            if c["cell_type"] == "code"
            else {})
        if kind in (None, c["cell_type"]):
            res.append(
                dict(index=i, kind=c["cell_type"], source=src, directives=dirs, outputs=c.get("outputs", [])))
    return res


def is_exported(c): return bool(c["directives"].keys() & {"export", "exports", "exporti"})


def code_of(c):
    "Python of a code cell, magics and shell lines left out; None for a cell in another language."
    if re.match(r"\s*%%", re.sub(r"^#\|.*\n", "", c["source"], flags=re.M)): return None
    return re.sub(r"^\s*(%|!(?!=)).*$", "pass", c["source"], flags=re.M)


def tree_of(c): code = code_of(c); return ast.parse(code) if code is not None else ast.parse("")


def module_of(nb):
    "The module that a notebook exports, or None."
    found = re.search(
        r"^\s*#\|\s*default_exp\s+(\S+)", "\n".join(c["source"] for c in cells(nb, "code")), re.M)
    return found[1] if found else None


SKIP = {".git", ".venv", "__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".hypothesis", "_proc",
        "_docs", "build", "dist"}


def copy_project(dst):
    "A copy of the working tree without what is made by tools; needs no git."
    def left_out(folder, names):
        top = Path(folder) == ROOT
        return [n for n in names if n in SKIP or n.endswith((".egg-info", ".tmp")) or (top and n == "runs")
                or (Path(folder) == NBS and n in ("nbdev.yml", "runs"))]
    shutil.copytree(ROOT, dst, symlinks=True, ignore=left_out)
    return Path(dst)


def set_writable(folder, yes):
    "Give or take the right to write in a folder and all below it"
    for p in [folder, *folder.rglob("*")]:
        if not p.is_symlink(): p.chmod(p.stat().st_mode | 0o200 if yes else p.stat().st_mode & ~0o222)


@functools.cache
def ordinary_user():
    "Words that start a command without a superuser's rights; None where the system has no way to it"
    if not hasattr(os, "geteuid") or os.geteuid() != 0: return ()
    words = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
    try: return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else None
    except OSError: return None


def other_file_system(than):
    "A folder of another file system that can be written, or None"
    places = ("/dev/shm", f"/run/user/{os.getuid()}", "/tmp", "/var/tmp")
    return next(
        (p for p in places if os.access(p, os.W_OK) and os.stat(p).st_dev != os.stat(than).st_dev), None)


def run(*cmd, cwd=ROOT, timeout=900, **env):
    """Runs a command; its exit status and all that it printed. The whole process group ends with the time
    limit."""
    settings = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    settings |= dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1") | {k: str(v) for k, v in env.items()}
    p = subprocess.Popen([str(c) for c in cmd], cwd=cwd, env=settings, start_new_session=True,
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True, encoding="utf-8", errors="replace")
    try: out = p.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        return 124, p.communicate()[0] + f"\nstopped after {timeout} s"
    return p.returncode, out
