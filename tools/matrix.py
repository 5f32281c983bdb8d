"""Runs the tests as other machines would: `make test-matrix`. A row is the suite, or a part of it, under one
difference (another Python, fewer units of the processor, one core, another locale, user, order, path ...), in
a copy of the working tree. What this machine cannot offer is listed with the reason.

    make test-matrix                                   every row on its own part of the suite
    make test-matrix ARGS="--list"                     the rows, their parts, and what cannot be run here
    make test-matrix ARGS="isa-default python3.12"     some rows
    make test-matrix ARGS="isa-default --full"         all of `make test`
    make test-matrix ARGS="no-git -- -k cli"           another part, in pytest's words

A Python other than this one gets an environment of its own: about 6 GB, removed afterwards unless --keep says
otherwise. Needs the standard library alone.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASCII = dict(LC_ALL="C", LANG="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
BOOK = "tests/test_notebooks.py"
TESTS = [f"tests/test_{n}.py" for n in ("cli", "registry", "package", "bad_input")]
RUNNING = [f"{BOOK}::test_notebook[running/{p.name}]" for p in sorted(ROOT.glob("nbs/running/*.ipynb"))]
PARTS = {
    "numbers": [BOOK, "-k", "paper or engine or scheduling or cli"],  # where arithmetic is done
    "rest": ["tests", "--deselect", BOOK],
    "commands": [*TESTS, *RUNNING],
    "all": ["tests"],
}


@dataclass
class Row:
    "One difference: what is run for it, and how"
    name: str
    about: str
    part: str  # of PARTS, unless another is asked for
    env: dict = field(default_factory=dict)
    prefix: list = field(default_factory=list)  # words before the command
    python: str = sys.executable
    folder: str = "clone"  # name of the copy
    words: list = field(default_factory=list)  # for pytest
    missing: str = ""  # why it cannot be run here


def works(*words):
    "Does such a command end well?"
    silent = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try: return subprocess.run(words, timeout=60, **silent).returncode == 0
    except (OSError, subprocess.SubprocessError): return False


# ---- what the machine offers

def find_python(version):
    "A Python of this version that can make an environment, from PATH or pyenv; None if there is none"
    name, home = f"python{version}", Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(name), *sorted(home.glob(f"versions/{version}.*/bin/{name}"), reverse=True)]
    able = f"import ensurepip, venv, ssl, sys; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"
    return next((str(p) for p in found if p and works(p, "-c", able)), None)


def python_row(version):
    row = Row(f"python{version}", f"Python {version}", "rest")
    if version == "%d.%d" % sys.version_info[:2]: return row
    row.python = find_python(version) or ""
    if not row.python: row.missing = f"no python{version} with venv and ensurepip on PATH or under pyenv"
    return row


def isa_row(name, about, **env): return Row(name, about, "numbers", env=env)


def cores_row(n):
    row = Row(f"cores-{n}", f"{n} of the cores", "commands")
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(own) < n: row.missing = f"this process has {len(own)} cores"
    if not shutil.which("taskset"): row.missing = "no taskset here"
    row.prefix = ["taskset", "-c", ",".join(map(str, own[:n]))]
    return row


def user_row():
    row = Row("user", "an ordinary user", "rest")
    if os.geteuid() != 0: return row
    row.prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
    if not works(*row.prefix, "true"): row.missing = "this user is root, and unshare makes no other here"
    return row


def other_disk():
    "A folder that can be written on another file system than the usual one for temporary files"
    usual = os.stat(tempfile.gettempdir()).st_dev
    places = ("/dev/shm", f"/run/user/{os.geteuid()}", "/var/tmp", str(Path.home()))
    return next((p for p in places if os.access(p, os.W_OK) and os.stat(p).st_dev != usual), None)


def odd_row():
    proxy = "http://127.0.0.1:9"  # nobody is there
    env = dict(COLUMNS="40", TZ="Asia/Kathmandu", http_proxy=proxy, https_proxy=proxy, no_proxy="")
    private = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
    return Row("odd", "40 columns, another time zone, a dead proxy, umask 077", "rest", env, private)


def order_row():
    seed = random.randrange(10**6)
    words = ["--random-order-bucket=global", f"--random-order-seed={seed}"]
    return Row("order", f"another order of tests, seed {seed}", "rest", words=words)


def locked_row():
    row = user_row()
    row.name, row.about, row.part = "read-only", "a clone that an ordinary user cannot write to", "commands"
    return row


def disk_row():
    row = Row("tmpdir", "TMPDIR on another file system", "rest", env=dict(TMPDIR=other_disk() or ""))
    if not row.env["TMPDIR"]: row.missing = "one file system only"
    return row


def rows():
    "All rows"
    return [
        *map(python_row, PYTHONS),
        isa_row("isa-default", "PyTorch without AVX", ATEN_CPU_CAPABILITY="default"),
        isa_row("isa-avx2", "PyTorch with AVX2 at most", ATEN_CPU_CAPABILITY="avx2"),
        isa_row("isa-own", "PyTorch with all that the processor has"),
        isa_row("onednn-avx2", "oneDNN with AVX2 at most: bf16 is emulated", ONEDNN_MAX_CPU_ISA="AVX2"),
        isa_row("mkl-sse", "MKL without AVX: another order of sums", MKL_ENABLE_INSTRUCTIONS="SSE4_2"),
        cores_row(1),
        cores_row(2),
        Row("locale", "LC_ALL=C", "rest", env=dict(LC_ALL="C", LANG="C")),
        Row("ascii", "LC_ALL=C, and Python keeps to it", "rest", env=ASCII),
        odd_row(),
        order_row(),
        user_row(),
        Row("space", "a path with a space", "rest", folder="a clone"),
        disk_row(),
        locked_row(),
        Row("no-git", "no git on PATH", "rest"),
    ]


# ---- how a row is run

def copy_tree(to, top=ROOT):
    "What git knows of the working tree or does not ignore; without git, all that tools have not made"
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not works("git", "-C", str(top), "rev-parse"):
        made = [".venv", ".git", "__pycache__", "_proc", "_docs", "build", "dist", "*.egg-info"]
        return shutil.copytree(top, to, symlinks=True, ignore=shutil.ignore_patterns(*made))
    listed = subprocess.run(words, cwd=top, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, listed):
        if not os.path.lexists(top / name): continue  # removed, and not yet committed
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(top / name, to / name, follow_symlinks=False)
    return to


def set_writable(folder, yes):
    for p in [folder, *folder.rglob("*")]:
        if not p.is_symlink(): p.chmod(p.stat().st_mode | 0o200 if yes else p.stat().st_mode & ~0o222)


def remove(folder):
    if not folder.exists(): return
    set_writable(folder, True)
    shutil.rmtree(folder)


def make_environment(python, place, clone):
    "An environment with the clone and its development tools"
    print(f"  making an environment with {python}: some minutes", flush=True)
    own = place / "bin/python"
    install = [own, "-m", "pip", "install", "--quiet", "--editable", f"{clone}[dev]"]
    for words in ([python, "-m", "venv", "--clear", place], install):
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
        if done.returncode: raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr[-500:]}")
    return str(own)


def without_git(place):
    "A PATH that has everything else: a folder of links"
    place.mkdir(parents=True)
    programs = [p for folder in os.environ["PATH"].split(os.pathsep) for p in Path(folder).glob("*")]
    for p in programs:
        if p.name.startswith("git") or os.path.lexists(place / p.name): continue
        (place / p.name).symlink_to(p)
    return str(place)


def counted(report):
    "Passed, failed and skipped tests of a JUnit file; None if it is missing or broken"
    try: suites = [s.attrib for s in ET.parse(report).getroot().iter("testsuite")]
    except (OSError, ET.ParseError): return None
    total, skipped = (sum(int(s[k]) for s in suites) for k in ("tests", "skipped"))
    failed = sum(int(s["failures"]) + int(s["errors"]) for s in suites)
    return total - failed - skipped, failed, skipped


def environment(row, work):
    "The environment's variables for a row"
    differs = ("PYTHONPATH", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
    env = {k: v for k, v in os.environ.items() if k not in differs}
    env |= dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1") | row.env
    if row.name == "no-git": env["PATH"] = without_git(work / "bin")
    return env


def run_row(row, words, jobs, work):
    "Run the tests; `(passed, failed, skipped)`, or None where they broke off"
    clone, python = copy_tree(work / row.folder), row.python
    if python != sys.executable: python = make_environment(python, work / "venv", clone)
    if row.name == "read-only": set_writable(clone, False)
    report = work / "report.xml"
    suite = ["-p", "no:cacheprovider", "-n", str(jobs), "--dist", "loadgroup", f"--junitxml={report}"]
    command, env = [*row.prefix, python, "-m", "pytest", *suite, *row.words, *words], environment(row, work)
    with open(work / "log.txt", "w", encoding="utf-8") as log:
        subprocess.run(command, cwd=clone, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    return counted(report)


def try_row(row, words, jobs, work, keep):
    "Run a row and say what came of it: a line for the table, and whether all went well"
    if row.missing: return f"not run: {row.missing}", True
    place, logs, began = work / row.name, work / "logs", time.monotonic()
    logs.mkdir(parents=True, exist_ok=True)
    remove(place)
    try: found = run_row(row, words, jobs, place)
    except (OSError, RuntimeError, subprocess.SubprocessError) as e: return f"broke off: {e}", False
    finally:
        log = place / "log.txt"
        if log.exists(): shutil.copy(log, logs / f"{row.name}.txt")
        if not keep: remove(place)
    spent = f"{(time.monotonic() - began) / 60:.1f} minutes; {logs / row.name}.txt"
    if found is None: return f"broke off after {spent}", False
    passed, failed, skipped = found
    return f"{passed} passed, {failed} failed, {skipped} skipped; {spent}", passed > 0 and not failed


def arguments(argv):
    "What is asked for: settings, and pytest's words (None: each row's part)"
    at = argv.index("--") if "--" in argv else len(argv)
    form = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(prog="tools/matrix.py", description=__doc__, formatter_class=form)
    p.add_argument("rows", nargs="*", help="rows to run; all if none is named")
    p.add_argument("--list", action="store_true", help="say what would be run, and run nothing")
    p.add_argument("--full", action="store_true", help="the whole suite in each row")
    p.add_argument("--keep", action="store_true", help="leave copies and environments")
    p.add_argument("--jobs", type=int, default=2, help="tests at a time")
    usual = Path(tempfile.gettempdir()) / f"hipro_nb-matrix-{os.geteuid()}"
    p.add_argument("--work", type=Path, default=usual, help=f"for copies and logs (default: {usual})")
    args = p.parse_args(argv[:at])
    known = {r.name: r for r in rows()}
    wrong = sorted(set(args.rows) - set(known))
    if wrong: p.error(f"no row {', '.join(wrong)}; expected some of {', '.join(known)}")
    return args, [known[n] for n in args.rows or known], argv[at + 1:] or None


def main(argv):
    args, chosen, words = arguments(argv)
    told, fine = [], True
    for row in chosen:
        part = "all" if args.full else row.part
        what = f"{row.name:12s} {row.about} ({'as asked' if words else part})"
        if args.list: print(f"{what}{': ' + row.missing if row.missing else ''}"); continue
        print(f"{what} ...", flush=True)
        said, well = try_row(row, words or PARTS[part], args.jobs, args.work, args.keep)
        told.append(f"{what}: {said}")
        fine &= well
        print(f"  {said}", flush=True)
    if told: print("\n" + "\n".join(told))
    return 0 if fine else 1


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
