"""Files, names and words from strangers: whatever they hold, a reader gives a value or `BadData` (or the
`ValueError` that it promises), a command ends with a status and a line, and a name that is written is read
back as text."""

import contextlib
import csv
import io
import json
import os
import random
import re
import signal
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import open_clip
import pytest
import torch
from mutants import DEEP, damaged, mutants
from tiny import image_folder, random_clip, save_clip, square, text, vision

from hipro_nb.cli import (hipro_fit, hipro_predict, load_run, read_bench, read_results, read_run,
                          summary)
from hipro_nb.zoo import load_clip
from hipro_nb.compare import MethodTable, hipro_compare, read_table
from hipro_nb.tasks import BadData, Features, Task, plain_text
from hipro_nb.folders import load_image_folder
from hipro_nb.files import load_tensors, open_file, parse_json, read_json, save_tensors
from hipro_nb.datasets.sources import read_classnames, read_list
from hipro_nb.datasets.ten import read_split
from hipro_nb.method import load_fitted
from hipro_nb.results import Result, compare
from hipro_nb.studies.reports import PaperTable, read_report
from hipro_nb.tree import TaskTree, flat_tree

# ---------------------------------------------------------------- names in what is written

NAMES = ("red\x1b[31m", "a\nb", "x\x9b2J", "half\ud800", "nul\x00", "\u202eabc", "a|b", "a\\|b", "back\\",
         "<script>alert(1)</script>", "&lt;", "\"'", "*a*", "[2cm] a", "*", "50% \n\\input{x}", "^^M", "$x$",
         "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "a,b;c", "__init__", "![x](y)", "`x`", "]]>", "-->", "{",
         "#1", "~", "自転車", "می‌خواهم", "👩‍🚀", "\ufffe")


class Page(HTMLParser):
    "The tags of a page, and the text of each cell, as a browser finds them"
    def __init__(self, text):
        super().__init__()
        self.tags, self.cells = set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag in ("td", "th", "caption"): self.cells.append("")

    def handle_data(self, data): self.cells[-1] += data


def cells_of(line):
    "The cells of a row of a Markdown table, as CommonMark's extension splits and reads them"
    found = [c.strip() for c in re.findall(r"((?:\\.|[^|\\])*)\|", line)[1:]]
    return [re.sub(r"\\([!-/:-@[-`{-~])", r"\1", c) for c in found]


def is_plain(text):
    return all(plain_text(line.strip()) == " ".join(line.split()) for line in text.split("\n"))


@pytest.fixture(scope="module")
def results():
    rows = np.tile(np.arange(float(len(NAMES))), (2, 1))
    facts = dict(date="a\nb", device="| gpu \x1b[2J", revision="*r*")
    titles = {"=coop": "<i>|Co\x1bOp", "hipro": "@Hi\nPro"}
    return {n: Result(t, NAMES, (1, 2), rows + len(n), facts=facts) for n, t in titles.items()}


@pytest.fixture(scope="module")
def table(results):
    return MethodTable(results, {}, left_out={"tag\n\\input{x}": "50%\n=1 | <b>"}).measure_gains()


def test_markdown(results, table):
    both = list(results.values())
    for o, columns in ((both[0], 2), (compare(both), 3), (table, 3)):
        text = o.to_markdown()
        rows = [cells_of(line) for line in text.split("\n") if line.startswith("|")]
        assert [r[0] for r in rows[2 : 2 + len(NAMES)]] == [plain_text(n) for n in NAMES]
        assert {len(r) for r in rows} == {columns} and is_plain(text)
    whole = summary(both, dict(settings=dict(data="my|*data*", x=1)))
    assert is_plain(whole) and whole.startswith("# my\\|\\*data\\*, \\@Hi Pro\n") and "\\| gpu" in whole


def test_html(results, table):
    both = list(results.values())
    paper = PaperTable([("<b>", 1), ("a\x1b", 1)], ["=", "|"], [[(n, False), ("1", True)] for n in NAMES])
    for o, tags in ((both[0], set()), (compare(both), {"b"}), (table, {"b"}), (paper, {"b"})):
        page = Page(o._repr_html_())
        assert page.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"} | tags
        known = [plain_text(n) for n in NAMES]
        assert [c for c in page.cells if c in known] == known
        ElementTree.fromstring(o._repr_html_())


def test_terminal(results, table):
    both = list(results.values())
    paper = PaperTable([("", 2)], ["=", "|"], [[(n, False), ("1", True)] for n in NAMES])
    for text in (str(compare(both)), table.to_text(), table.to_text(20), repr(paper)): assert is_plain(text)


def test_latex(table):
    lines = table.to_latex().split("\n")
    assert is_plain("\n".join(lines)) and len(lines) == len(table.grid()) + 9
    body = [line for line in lines if line.endswith(r" \\")]
    assert len(body) == len(table.grid()) and not any(line.startswith(("[", "*")) for line in body)
    for line in body[1:-3]:
        name = line.split(" & ")[0]
        bare = re.sub(r"\\text\w+\{\}|\{\\char\d+\}|\{[\[\]*]\}|\\[&%_#${}]", "", name)
        assert not set("\\{}%#_^~$&[*") & set(bare), line
    assert lines[-1].startswith("% ") and "input" in lines[-1]


def test_csv(table):
    rows = list(csv.reader(io.StringIO(table.to_csv())))
    found = [r[2].removeprefix("'") for r in rows[1 : 1 + len(NAMES)]]
    assert found == [plain_text(n).removeprefix("'") for n in NAMES] and {len(r) for r in rows} == {15}
    assert not any(c.startswith(("=", "+", "-", "@", "\t", "\r")) for r in rows for c in r[:3])


def test_svg():
    svg = flat_tree(len(NAMES)).to_svg(NAMES)
    texts = [t.text or "" for t in ElementTree.fromstring(svg).iterfind(".//{*}text[@text-anchor]")]
    assert texts == [plain_text(n)[:40] for n in NAMES] and is_plain(svg)


def test_names_of_tasks_and_classes():
    "What breaks a line or a terminal is in no name; the others are shown as text"
    f = Features(torch.ones(1, 1), [0])
    for n in NAMES:
        try: task = Task(n, [n], f, f)
        except BadData: continue
        page = Page(task._repr_html_())
        assert page.tags == {"table", "tr", "td", "b"} and page.cells[0] == n and is_plain(repr(task))
        assert not set(n) & set("\x1b\n\x9b\ud800\x00\t")
    assert all(Task(n, [n], f, f) for n in NAMES if not set(n) & set("\x1b\n\x9b\ud800\x00\t"))


def test_what_a_command_says(tmp_path, capfd):
    odd = str(tmp_path / "run\x1b[31m\nhipro_predict: all is well")
    assert hipro_predict([odd, "x.png"]) == 2
    said = capfd.readouterr().err
    assert "\x1b" not in said and said.startswith("hipro_predict: ")


# ---------------------------------------------------------------- whatever a file holds

class Hangs(Exception): "A reader did not come back"


@contextlib.contextmanager
def coming_back(seconds=120):
    "An alarm that no honest reader waits for"
    def ring(*args): raise Hangs(f"no answer in {seconds} s")
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def is_taken(what, call, *args):
    "Whether a reader took it; fails where it ended in anything but a value, `BadData` or `ValueError`"
    with coming_back(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: call(*args)
        except ValueError: return False
        except Exception as e: raise AssertionError(f"{what}: {e!r}") from e
    return True


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A run, a comparison's table, a list, a model and weights, all tiny"
    home = tmp_path_factory.mktemp("foreign")
    image_folder(home / "data", tasks=("art", "photo"), classes=("apple", "plum"), n=3)
    save_clip(home / "model")
    torch.save(random_clip().state_dict(), home / "weights.pt")
    torch.save(random_clip().state_dict(), home / "legacy.pt", _use_new_zipfile_serialization=False)
    words = ("--model", str(home / "model"), "--out", str(home / "runs"), "--name", "run")
    with contextlib.redirect_stdout(io.StringIO()):
        assert hipro_fit([str(home / "data"), *USUAL, *words]) == 0
    for name, text in small_files().items(): (home / name).write_text(text, encoding="utf-8")
    return home


def small_files():
    "Text files of every kind that is read, by name"
    facts = dict(date="x", device="y", revision="z")
    one = Result("HiPro", ("art", "photo"), (1, 2), [[50, 60], [70, 80]], facts=facts)
    trees = {1: dict(affinity=[[1.0, 0.5], [0.5, 1.0]], tree=flat_tree(2).to_dict())}
    table = MethodTable(dict(hipro=one, coop=one), dict(hipro=dict(seconds=1.0)), trees=trees).measure_gains()
    split = dict(train=[["a.png", 0, "apple"]], val=[], test=[["b.png", 1, "plum"]])
    return {
        "list.json": json.dumps({t: ["apple/0.png", "plum/1.png"] for t in ("art", "photo")}),
        "bench.json": json.dumps(dict(tower=dict(facts=facts, found=dict(nodes=7)))),
        "split.json": json.dumps(split), "table.json": table.to_json(),
        "images.txt": "apple/0.png 0\nplum/1.png 1\n", "classnames.txt": "apple a red apple\nplum a plum\n"}


USUAL = ("--shots", "1", "--seeds", "1", "--epochs", "1", "--n-ctx", "2", "--batch-size", "8")


def readers(home):
    "File, and the reader that is given its folder: the file's own name stays"
    def clip_of(path): return load_clip(str(path.parent))
    def weights(path): return load_clip("tiny-foreign", str(path))
    def folder_of(path): return load_image_folder(home / "data", train_list=path)
    run = home / "runs" / "run"
    return dict(
        tensors=(run / "seed1/classifiers.safetensors", load_tensors),
        method=(run / "seed1/model.safetensors", load_fitted), results=(run / "results.json", read_results),
        run=(run / "run.json", lambda p: read_run(p.parent)), table=(home / "table.json", read_table),
        report=(home / "table.json", read_report), bench=(home / "bench.json", read_bench),
        train_list=(home / "list.json", folder_of), split=(home / "split.json", read_split),
        images=(home / "images.txt", read_list), zip=(home / "weights.pt", weights),
        classnames=(home / "classnames.txt", lambda p: read_classnames(p.parent)),
        config=(home / "model/open_clip_config.json", clip_of), legacy=(home / "legacy.pt", weights))


@pytest.fixture
def tiny_model(monkeypatch):
    "An architecture by name, for weights in a file"
    cfg = dict(embed_dim=32, vision_cfg=vision, text_cfg=text)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-foreign", cfg)


SLOWER = ("config", "zip", "legacy")
KINDS = tuple(readers(Path(".")))


def check_reader(home, tmp_path, kind, n):
    "A file damaged in `n` ways, and, where it is JSON, with `n` places changed"
    file, read = readers(home)[kind]
    raw, target = file.read_bytes(), tmp_path / file.parent.name / file.name
    target.parent.mkdir(parents=True)
    if kind == "config":
        for other in set(file.parent.iterdir()) - {file}: (target.parent / other.name).symlink_to(other)
    versions = [(what, new) for what, new in damaged(raw, kind, n)]
    if file.suffix == ".json":
        versions += [(what, json.dumps(new).encode()) for what, new in mutants(json.loads(raw), kind, n)]
        deep = DEEP.encode()
        versions += [(new[:20], new) for new in (b'{"settings":' + deep, deep, b"[NaN]", b'"\\ud800"')]
    versions += [(new[:20], new) for new in (b"", bytes(100), b"\xff\xfe\x00", b"1" * 10_000)]
    taken = 0
    for what, new in versions:
        target.write_bytes(new)
        taken += is_taken(f"{kind}, {what}", read, target)
    assert taken < len(versions)
    target.write_bytes(raw)
    if kind not in ("zip", "legacy"): assert is_taken(kind, read, target), "the file as it was is read"
    target.unlink()
    os.mkfifo(target)
    if kind != "classnames": assert not is_taken(f"{kind}, a FIFO", read, target)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(home, tmp_path, tiny_model, kind):
    check_reader(home, tmp_path, kind, 10 if kind in SLOWER else 50)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_at_length(home, tmp_path, tiny_model, kind):
    check_reader(home, tmp_path, kind, 100 if kind in SLOWER else 3000)


def odd_arguments(folder):
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    return (None, True, 0, 7, -1, 1.5, b"x", [], ["x"], {}, {"a": 1}, {1: 2}, object(), "", "a\0b", "\ud800",
            "x" * 5000, "/dev/null", "/dev/zero", folder, folder / "none", folder / "fifo", np.zeros(3),
            torch.zeros(2), DEEP, "[1]", "null")


def opened(path):
    with open_file(path) as (f, size): return f.read(size)


def test_odd_arguments(tmp_path):
    "Whatever a reader is handed in the place of a file, a folder, a text or a dictionary; 0 stays open"
    calls = (load_tensors, load_fitted, read_results, read_run, read_table, read_report, read_json, read_list,
             read_split, read_classnames, parse_json, Result.from_json, Result.from_dict, TaskTree.from_dict,
             load_run, load_image_folder, opened)
    odd = odd_arguments(tmp_path / "odd")
    before = os.fstat(0)
    for call in calls:
        for o in odd: is_taken(f"{call.__name__}({o!r:.60})", call, o)
    assert os.fstat(0) == before


@pytest.mark.parametrize("n", [300, pytest.param(None, marks=pytest.mark.slow)])
def test_odd_dictionaries(home, n):
    "Every place of a tree's and of a result's dictionary, changed"
    tree = dict(n_tasks=3, merges=[[0, 1], [3, 2]], heights=[1.0, 2.0], affinities=[0.5, 0.1])
    result = json.loads((home / "runs/run/results.json").read_text(encoding="utf-8"))[0]
    for call, d in ((TaskTree.from_dict, tree), (Result.from_dict, result)):
        assert is_taken("as it was", call, d)
        for what, new in mutants(d, 0, n): is_taken(f"{call.__name__}, {what}", call, new)


# ---------------------------------------------------------------- whatever a command is told

ODD_WORDS = ("", " ", "nan", "inf", "-1", "0", "1.5", "x", "-", "--", "a\nb", "🙂", "\x1b[31m", "../..",
             "/dev/null", "1,2,", "9-1", "true", "'", "%s")


def check_command(command, words, options, n, capfd):
    "A command with one odd word in the place of an option's value: a status and one line, never a traceback"
    cases = [[*words, option, odd] for option in options for odd in ODD_WORDS]
    cases = cases if n is None else random.Random(command.__name__).sample(cases, n)
    for case in [[], ["--nothing"], ODD_WORDS[:3], *cases]:
        with coming_back():
            try: status = command(list(case))
            except SystemExit as e: status = e.code
            except Exception as e: raise AssertionError(f"{case}: {e!r}") from e
        out, err = capfd.readouterr()
        assert status in (0, 2) and "Traceback" not in out + err, (case, status, err[-500:])
        assert status == 0 or err.count("\n") >= 1


FIT = ("--model", "--pretrained", "--method", "--shots", "--fraction", "--train-list", "--seeds", "--lr",
       "--epochs", "--n-ctx", "--batch-size", "--name", "--out", "--root", "--views", "--device", "--dtype",
       "--chunk", "--store")
PREDICT = ("--task", "--seed", "--top", "--model", "--pretrained", "--device")


few_then_all = [20, pytest.param(None, marks=pytest.mark.slow)]


@pytest.mark.parametrize("n", few_then_all)
def test_fit_with_odd_words(home, tmp_path, capfd, monkeypatch, n):
    monkeypatch.chdir(tmp_path)
    words = [home / "data", *USUAL, "--model", home / "model", "--out", tmp_path / "runs", "--name", "n"]
    check_command(hipro_fit, [*map(str, words)], FIT, n, capfd)


@pytest.mark.parametrize("n", few_then_all)
def test_predict_with_odd_words(home, tmp_path, capfd, monkeypatch, n):
    monkeypatch.chdir(tmp_path)
    square(1).save(tmp_path / "x.png")
    check_command(hipro_predict, [str(home / "runs" / "run"), "x.png"], PREDICT, n, capfd)


@pytest.mark.parametrize("n", few_then_all)
def test_compare_with_odd_words(home, tmp_path, capfd, monkeypatch, n):
    "Up to where the work would begin"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hipro_nb.compare.compare_methods", lambda *args, **kwargs: None)
    words = [home / "data", *USUAL, "--model", home / "model", "--methods", "coop"]
    options = ("--methods", "--jobs", "--report", *(o for o in FIT if o not in ("--method", "--name")))
    check_command(hipro_compare, [*map(str, words)], options, n, capfd)


@pytest.mark.parametrize("n", [3, pytest.param(150, marks=pytest.mark.slow)])
def test_predict_on_a_damaged_run(home, tmp_path, capfd, n):
    "A run folder of which one file is damaged, or says something else"
    square(1).save(tmp_path / "x.png")
    run = tmp_path / "run"
    (run / "seed1").mkdir(parents=True)
    names = ("run.json", "seed1/results.json", "seed1/model.safetensors")
    good = {name: (home / "runs" / "run" / name).read_bytes() for name in names}
    for name in names:
        versions = [new for _, new in damaged(good[name], name, n)]
        if name.endswith("json"):
            versions += [json.dumps(new).encode() for _, new in mutants(json.loads(good[name]), name, n)]
        for new in versions:
            for other, raw in good.items(): (run / other).write_bytes(new if other == name else raw)
            with coming_back():
                assert hipro_predict([str(run), str(tmp_path / "x.png")]) in (0, 2)
            assert "Traceback" not in capfd.readouterr().err


def test_a_right_checksum_and_odd_metadata(tmp_path):
    kind = "hipro_nb method"
    for meta in ({}, {"kind": kind}, {"a": [1] * 1000}, {"x" * 10_000: None}, {"kind": [kind]}):
        file = save_tensors(tmp_path / "x.safetensors", dict(a=torch.ones(2)), meta)
        assert load_tensors(file)[1] == meta and not is_taken(meta, load_fitted, file)
