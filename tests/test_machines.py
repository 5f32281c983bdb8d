"""What differs from machine to machine: the tool that runs the tests as other machines would, and the entry
of a CI."""

import os
import re
import sys

import pytest
from project import ROOT, run

sys.path.insert(0, str(ROOT / "tools"))
import matrix  # noqa: E402

NEEDED = {"isa-default", "isa-avx2", "isa-own", "onednn-avx2", "cores-1", "cores-2", "locale", "odd", "order",
          "user", "space", "tmpdir", "read-only", "no-git"}
ONE = ["tests/test_imports.py", "-k", "mathematics"]


def test_rows():
    "Every difference has its row, and each row names a part of the suite that is there"
    made = matrix.rows()
    rows = {r.name: r for r in made}
    assert NEEDED | {f"python{v}" for v in matrix.PYTHONS} <= set(rows) and len(rows) == len(made)
    assert {r.part for r in rows.values()} <= set(matrix.PARTS)
    files = [w for words in matrix.PARTS.values() for w in words if w.startswith("tests")]
    assert files and all((ROOT / f.partition("::")[0]).exists() for f in files)
    assert rows["isa-default"].env == dict(ATEN_CPU_CAPABILITY="default") and rows["isa-own"].env == {}


def test_what_a_machine_has_not_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(matrix, "works", lambda *words: False)
    monkeypatch.setattr(matrix.shutil, "which", lambda name: None)
    monkeypatch.setattr(matrix, "other_disk", lambda: None)
    monkeypatch.setattr(matrix.sys, "version_info", (3, 9))
    monkeypatch.setattr(matrix.os, "geteuid", lambda: 0)
    rows = ["python3.12", "cores-1", "user", "read-only", "tmpdir"]
    assert matrix.main([*rows, "--work", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for why in ("no python3.12 with venv", "no taskset here", "unshare makes no other here",
                "one file system only"): assert why in said
    assert said.count(": not run: ") == len(rows) and not list(tmp_path.iterdir())


def test_a_row_is_run(capsys, tmp_path):
    "One in a path with a space, one without git; the exit status tells whether tests ran and passed"
    for row in ("space", "no-git"):
        assert matrix.main([row, "--jobs", "0", "--work", str(tmp_path), "--keep", "--", *ONE]) == 0
        assert re.search(r" [1-9]\d* passed, 0 failed, 0 skipped; ", capsys.readouterr().out)
    assert (tmp_path / "space" / "a clone" / "setup.py").exists() and "git" not in os.listdir(
        tmp_path / "no-git" / "bin")
    assert matrix.main(["space", "--jobs", "0", "--work", str(tmp_path), "--", *ONE, "-k", "nothing"]) == 1
    assert " 0 passed, " in capsys.readouterr().out and not (tmp_path / "space").exists()
    assert (tmp_path / "logs" / "space.txt").exists()


@pytest.mark.parametrize("failed,said", [
    (0, "5 passed, 0 failed"), (1, "4 passed, 1 failed"), (None, "0 passed, 1 failed")])
def test_ci(tmp_path, failed, said):
    "Counts come from the report, in a folder with a space, too; a run that writes none has failed"
    home = tmp_path / "a place"
    home.mkdir()
    counts = (
        f'<testsuites>\n<testsuite tests="7" failures="{failed}" errors="0"'
        ' skipped="2">\n</testsuite></testsuites>')
    (home / "counts").write_text(counts, encoding="utf-8")
    write = (
        f"""eval "set -- $PYTEST_ADDOPTS"\ncp '{home}/counts' "${{1#--junitxml=}}"\n"""
        if failed is not None
        else "")
    (home / "make").write_text(f"#!/bin/sh\n{write}exit {failed or 0}\n", encoding="utf-8")
    (home / "make").chmod(0o755)
    path = os.pathsep.join([str(home), os.environ["PATH"]])
    status, out = run("bash", ROOT / ".ci/run", cwd=tmp_path, PATH=path, TMPDIR=home, PYTEST_ADDOPTS="")
    assert (status, out) == (int(failed != 0), said + "\n")
