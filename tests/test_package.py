"What is installed, what is published, and what the README says."
import hashlib
import importlib
import json
import re
import shutil
import sys
import tarfile
import zipfile

import pytest
import yaml
from project import CFG, LIB, ROOT, copy_project, ordinary_user, other_file_system, run, set_writable
from tiny import image_folder, save_clip

ASSETS = (
    [p for p in (LIB / "assets").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    if (LIB / "assets").exists()
    else [])


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Wheel and source archive, built from a copy: the wheel out of the archive, so what the archive lacks
    the wheel lacks."""
    top = copy_project(tmp_path_factory.mktemp("dist") / "project")
    status, out = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", top / "dist", cwd=top)
    assert status == 0, out[-4000:]
    return top / "dist"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "What `pip install .` puts into an empty folder, out of a clone that cannot be written"
    top = copy_project(tmp_path_factory.mktemp("install") / "a clone")
    target, before = top.parent / "site", sorted(top.rglob("*"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
           "--no-index"]
    set_writable(top, False)
    try:status, out = run(*(ordinary_user() or ()), *pip, "--target", target, ".", cwd=top)
    finally: set_writable(top, True)
    assert status == 0, out[-4000:]
    assert ordinary_user() is None or sorted(top.rglob("*")) == before  # root writes anywhere
    return target


def sha(data): return hashlib.sha256(data).hexdigest()


def expected():
    "What an installation has: all modules but the studies, and the data."
    modules = [p for p in LIB.rglob("*.py") if LIB / "studies" not in p.parents]
    return {p.relative_to(ROOT).as_posix(): sha(p.read_bytes()) for p in [*modules, *ASSETS]}


@pytest.mark.xdist_group("dist")
def test_wheel(dist):
    "The wheel has the package and its data, byte for byte, and nothing besides."
    wheel = zipfile.ZipFile(next(dist.glob("*.whl")))
    found = {n: sha(wheel.read(n)) for n in wheel.namelist() if ".dist-info/" not in n}
    assert found == expected()
    info = {n.rpartition("/")[2]: wheel.read(n).decode() for n in wheel.namelist() if ".dist-info/" in n}
    assert (
        "LICENSE" in info
        and "License-Expression: Apache-2.0" in info["METADATA"]
        or "License: Apache-2.0" in info["METADATA"])
    for script in CFG["console_scripts"].split():
        assert script.replace("=", " = ") in info["entry_points.txt"]
    assert re.search(r"\[nbdev\]\s*hipro_nb = hipro_nb\._modidx:d", info["entry_points.txt"])
    needs = re.findall(r"^Requires-Dist: (.*)", info["METADATA"], re.M)
    assert len([n for n in needs if "extra ==" not in n]) == len(CFG["requirements"].split()) and any(
        'extra == "dev"' in n for n in needs)


@pytest.mark.xdist_group("dist")
def test_source_archive(dist):
    names = {n.partition("/")[2] for n in tarfile.open(next(dist.glob("*.tar.gz"))).getnames()}
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= names
    assert expected().keys() <= names


def test_install_ships_data(installed):
    found = {
        p.relative_to(installed).as_posix(): sha(p.read_bytes())
        for p in (installed / "hipro_nb").rglob("*")
        if p.is_file() and p.suffix != ".pyc"}
    assert found == expected()
    code = (
        "import hipro_nb, sys; from pathlib import Path; print(Path(hipro_nb.__file__).resolve().parents[1],"
        " hipro_nb.__version__)")
    status, out = run(sys.executable, "-c", code, cwd=installed.parent, PYTHONPATH=installed)
    assert (status, out.split()) == (0, [str(installed.resolve()), CFG["version"]])


COMMANDS = """
import json, shutil, sys, tempfile
from importlib.metadata import entry_points
import hipro_nb
ours = {e.name: e for e in entry_points(group="console_scripts") if e.value.startswith("hipro_nb.")}
print(json.dumps([hipro_nb.__file__, tempfile.gettempdir(), shutil.which("git"), sorted(ours)]))
for name, *argv in json.loads(sys.argv[1]):
    try: status = ours[name].load()(argv)
    except SystemExit as e: status = e.code
    print(json.dumps([name, status]), flush=True)
"""


def test_commands_of_an_installed_package(installed, tmp_path):
    """Out of a package that cannot be written, without git, with temporary files elsewhere, by an ordinary
    user"""
    image_folder(tmp_path / "data", tasks=("art", "photo"), classes=("plum", "fig"), n=2)
    save_clip(tmp_path / "model")
    small = ["--model", "model", "--shots", "1", "--seeds", "1", "--epochs", "1", "--n-ctx", "2"]
    asked = [
        ["hipro_fit", "data", *small, "--method", "coop"],
        ["hipro_predict", "runs/data-coop", "data/art/fig/0.png"],
        ["hipro_compare", "data", *small, "--methods", "zero_shot,coop", "--jobs", "0"],
        ["hipro_demo", "--seeds", "1", "--epochs", "1"],
        ["hipro_bench", "--help"],
    ]
    (tmp_path / "empty").mkdir()
    elsewhere = other_file_system(tmp_path) or tmp_path
    place = dict(PATH=tmp_path / "empty", PYTHONPATH=installed, TMPDIR=elsewhere, HOME=tmp_path)
    prefix = [shutil.which(w) or w for w in ordinary_user() or ()]
    set_writable(installed, False)
    try: status, out = run(*prefix, sys.executable, "-c", COMMANDS, json.dumps(asked), cwd=tmp_path, **place)
    finally: set_writable(installed, True)
    assert status == 0, out[-4000:]
    about, *said = [json.loads(line) for line in out.splitlines() if line.startswith("[")]
    scripts = sorted(s.partition("=")[0] for s in CFG["console_scripts"].split())
    assert about == [str(installed / "hipro_nb/__init__.py"), str(elsewhere), None, scripts]
    assert said == [[words[0], 0] for words in asked], out[-4000:]
    files = [*tmp_path.glob("runs/*/results.json"), *tmp_path.glob("runs/*/*/seed1/results.json")]
    found = [json.loads(p.read_text(encoding="utf-8")) for p in files]
    made = {r["facts"]["revision"] for rs in found for r in (rs if isinstance(rs, list) else [rs])}
    assert len(files) == 4 and made == {f"v{CFG['version']}"}


def test_assets():
    "The embedded model is there, as safetensors, and small; nothing in the package is a pickle."
    assert any(p.suffix == ".safetensors" for p in ASSETS), "hipro_nb/assets has no weights"
    assert sum(p.stat().st_size for p in ASSETS if p.suffix == ".safetensors") <= 4 * 2**20
    assert not [
        p.name for p in ASSETS if p.suffix in (".pt", ".pth", ".pkl", ".pickle", ".npy", ".npz", ".bin")]


@pytest.mark.parametrize("script", CFG["console_scripts"].split())
def test_console_script(script):
    module, _, func = script.partition("=")[2].partition(":")
    assert callable(getattr(importlib.import_module(module), func))


def test_readme():
    "README.md is the rendering of nbs/index.ipynb, whose generated cells are up to date."
    status, out = run(sys.executable, ROOT / "tools/readme.py", "--check")
    assert status == 0, out


def test_readme_links():
    for target in re.findall(r"\]\(([^)\s#]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert re.match(r"[a-z]+:", target) or (ROOT / target).exists(), f"README.md: {target} leads nowhere"


def test_readme_says_what_is_needed():
    md = (ROOT / "README.md").read_text(encoding="utf-8")
    five = re.search(r"```python\n(.*?)```", md, re.S)[1].strip().split("\n")
    assert len(five) == 5 and "make demo" in md and "make test" in md
    assert len(md.encode()) < 8192, "a README is read to its end when it is short"
    assert "(nbs/fig-method.png)" in md and "(nbs/start/00_from_scratch.ipynb)" in md
    assert re.findall(r"^@inproceedings\{(\w+),", md, re.M) == ["liu2023hipro", "li2025jscpt"]


def test_readme_lists_the_parts():
    "A line for each numbered part of the sidebar, with a link to the first chapter of that part"
    sidebar = yaml.safe_load((ROOT / "nbs/sidebar.yml").read_text(encoding="utf-8"))
    _, _, *parts = sidebar["website"]["sidebar"]["contents"]
    md = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| \[([IVX]+ [^]]+)\]\(nbs/([^)]+)\) \|", md, re.M))
    assert listed == {p["section"]: p["contents"][0] for p in parts}


def test_readme_table_agrees():
    "The README's own small arithmetic equals `hipro_nb.results`'s, on planted runs."
    sys.path.insert(0, str(ROOT / "tools"))
    import readme
    from hipro_nb.results import Result
    points = {"HiPro": (65, 70, 69.5), "CoOp": (63, 65, 67), "zero-shot": (50, 50, 50)}
    points |= {"CoOp-MTL": (60, 61, 62), "Shr+Ind": (64, 66, 68), "IMTL": (71, 72, 73)}
    runs = {m: Result(m, ("a", "b"), (1, 2, 3), [[x - 1, x + 1] for x in xs]) for m, xs in points.items()}
    found = {m: json.loads(r.to_json()) for m, r in runs.items()}
    i = runs["HiPro"].paired_interval(runs["CoOp"])
    gain = f"{i.mean:+.1f} ({i.low:+.1f}\u00a0to\u00a0{i.high:+.1f})"
    row = f"| drawings | 3 | 50.0 | 65.0 | 61.0 | 66.0 | 68.2 | {gain} |"
    assert readme.results_row("drawings", found) == f"{row} IMTL 72.0, HiPro 68.2, Shr+Ind 66.0 |"
    del found["IMTL"]
    assert readme.results_row("drawings", found) == f"{row}  |"


def test_changelog_names_exist():
    "The public API that the changelog lists is exported."
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    listed = text.split("### Public API\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| `(hipro_nb\.[\w.]+)` \| (.*) \|$", listed, re.M)
    assert len(rows) > 20
    for module, names in rows:
        missing = set(re.findall(r"`(\w+)`", names)) - set(importlib.import_module(module).__all__)
        assert not missing, f"{module} does not export {sorted(missing)}"


def test_license_and_project_files():
    assert (
        "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
        and len((ROOT / "LICENSE").read_text(encoding="utf-8")) > 11000)
    assert "*.ipynb merge=nbdev-merge" in (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
    assert f"## {CFG['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    toml = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r"^\[(.*)\]", toml, re.M) == ["build-system"]
