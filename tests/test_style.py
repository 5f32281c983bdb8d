"What STYLE asks of every chapter and what a program can see."
import ast
import base64
import json
import re

import pytest
from project import ROOT, cells, chapters, code_of, is_exported, name, notebooks, text, tree_of

MACHINE = re.compile(r"/(?:work|root|home|tmp|Users|private)/[\w.\-]+|[A-Z]:\\\\Users")
every = pytest.mark.parametrize("nb", notebooks(), ids=name)
every_chapter = pytest.mark.parametrize("nb", chapters(), ids=name)


def body(code): return [l for l in code.split("\n") if l.strip() and not re.match(r"\s*#\s?\|", l)]


@every_chapter
def test_opening(nb):
    """`default_exp`, where something is exported, then a cell with the title and its subtitle alone (nbdev
    takes that cell out of the page)."""
    cs = cells(nb)
    if any(map(is_exported, cs)):
        assert "default_exp" in cs[0]["directives"], "the first cell is not `#| default_exp`"
    head = next(c for c in cs if c["kind"] == "markdown")
    assert re.fullmatch(
        r"# \S.*\n\n?> \S.*", head["source"].strip()
    ), f"the first Markdown cell is not `# Title` and `> subtitle` alone:\n{head['source'][:300]}"


@every
def test_size_and_outputs(nb):
    assert nb.stat().st_size < 300 * 1024, f"{nb.stat().st_size // 1024} KB"
    for c in cells(nb, "code"):
        for o in c["outputs"]:
            where = f"{name(nb)}, cell {c['index']}"
            assert o["output_type"] != "error", f"{where}: an error is stored"
            assert o.get("name") != "stderr", f"{where}: a warning is stored: {text(o['text'])[:200]}"
            shown = json.dumps(
                {k: v for k, v in o.get("data", {}).items() if not k.startswith("image/p")}
            ) + text(o.get("text"))
            assert not MACHINE.search(shown), f"{where}: a path of one machine, {MACHINE.search(shown)[0]}"
            for kind, data in o.get("data", {}).items():
                if kind.startswith("image/"):
                    size = (
                        len(base64.b64decode(text(data)))
                        if kind != "image/svg+xml"
                        else len(text(data).encode()))
                    assert size < 60 * 1024, f"{where}: a figure of {size // 1024} KB"


@every
def test_width(nb):
    "Code has lines of at most 110 columns; directives (captions, alternative texts) are prose."
    lines = [(c["index"], l) for c in cells(nb, "code") for l in c["source"].split("\n")]
    wide = [(i, l) for i, l in lines if len(l) > 110 and not l.startswith("#|")]
    assert not wide, "lines over 110 columns (cell, line)"


@pytest.mark.parametrize("folder", ["tests", "tools"])
def test_width_of_files(folder):
    "What is not made of notebooks has the same width."
    lines = {f"{p.name}:{i}": l for p in sorted((ROOT / folder).glob("*.py"))
             for i, l in enumerate(p.read_text("utf-8").split("\n"), 1)}
    assert not [at for at, l in lines.items() if len(l) > 110], "lines over 110 columns"


@every
def test_exported_cells_are_small(nb):
    sizes = {c["index"]: len(body(c["source"])) for c in cells(nb, "code") if is_exported(c)}
    assert not {i: n for i, n in sizes.items() if n > 40}, "exported cells over 40 lines (index: lines)"


@every
def test_checks_can_fail(nb):
    for c in cells(nb, "code"):
        never = re.search(
            r"assert True\b|test_fail\(\s*lambda\s+\w+\s*:|^\s*except\s*:|except (Base)?Exception:\s*pass",
            c["source"], re.M)
        assert not never, f"cell {c['index']}: {never[0]!r}"


@every_chapter
def test_imports_apart(nb):
    """nbdev runs a cell with an import for the docs, in a namespace that is empty but for exported cells:
    such a cell has nothing else in it."""
    for c in cells(nb, "code"):
        kinds = {
            isinstance(n, (ast.Import, ast.ImportFrom))
            for n in tree_of(c).body
            if not (isinstance(n, ast.Pass))}
        assert len(kinds) < 2, f"cell {c['index']} mixes imports and code:\n{c['source'][:200]}"


def functions(tree):
    """Functions of an exported cell and methods of its public classes, with the class they stand in; closures
    are left out."""
    for n in tree.body:
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) and not patches_private(n): yield n, None
        if isinstance(n, ast.ClassDef) and not n.name.startswith("_"):
            yield from ((m, n) for m in n.body if isinstance(m, (ast.FunctionDef, ast.AsyncFunctionDef)))


def patches_private(f):
    "Is it a method that is patched into a class for internal use?"
    patched = any(ast.unparse(d).startswith("patch") for d in f.decorator_list)
    return (
        patched
        and f.args.args[0].annotation is not None
        and ast.unparse(f.args.args[0].annotation).strip("'").startswith("_"))


def is_property(f):
    "The docs show a property's docstring, and no signature where a docment could stand."
    return any(
        ast.unparse(d).endswith("property") or "as_prop=True" in ast.unparse(d) for d in f.decorator_list)


def undocumented(c):
    "What an exported cell leaves without docstring, annotation or docment."
    lines, tree = code_of(c).split("\n"), tree_of(c)
    said = lambda n: "#" in lines[n - 1] or (n > 1 and lines[n - 2].lstrip().startswith("# "))
    for f, klass in functions(tree):
        if f.name.startswith("_") and f.name != "__init__": continue
        where = f"{klass.name}.{f.name}" if klass else f.name
        if f.name != "__init__" and not ast.get_docstring(f): yield f"{where}: no docstring"
        a = f.args
        for x in [*a.posonlyargs, *a.args, *a.kwonlyargs]:
            if x.arg in ("self", "cls"): continue
            if not said(x.lineno): yield f"{where}: no docment on {x.arg}"
        if not any(isinstance(n, ast.Return) and n.value is not None for n in walk_own(f)): continue
        if f.returns is None: yield f"{where}: no annotation of what it returns"
        elif (
            f.name != "__init__"
            and not self_returning(f)
            and not is_property(f)
            and not said(f.returns.end_lineno)): yield f"{where}: no docment on what it returns"
    for k in tree.body:
        if isinstance(k, ast.ClassDef) and not k.name.startswith("_"):
            if not ast.get_docstring(k): yield f"{k.name}: no docstring"
            for field in k.body:
                if isinstance(field, ast.AnnAssign) and not said(field.lineno):
                    yield f"{k.name}: no docment on {field.target.id}"


def walk_own(f):
    "The nodes of a function without those of functions inside it."
    todo = list(f.body)
    while todo:
        n = todo.pop()
        yield n
        if not isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            todo += ast.iter_child_nodes(n)


def self_returning(f):
    "Does it return its own object or class, named by the annotation alone?"
    first = f.args.args[0] if f.args.args else None
    return (
        first is not None
        and first.arg in ("self", "cls")
        and (
            first.annotation is not None
            and ast.unparse(first.annotation) == ast.unparse(f.returns)
            or first.arg == "cls"))


@every
def test_documented(nb):
    found = [f"cell {c['index']}: {u}" for c in cells(nb, "code") if is_exported(c) for u in undocumented(c)]
    assert not found, "\n" + "\n".join(found)


def is_text_mode(call, at):
    "Is the mode, a keyword or the argument in place `at`, one of text?"
    mode = next(
        (k.value for k in call.keywords if k.arg == "mode"), call.args[at] if len(call.args) > at else None)
    return mode is None or isinstance(mode, ast.Constant) and "b" not in str(mode.value)


def takes_locale(n):
    "Does this call read or write text in the encoding of whoever runs it?"
    if not isinstance(n, ast.Call) or any(k.arg in ("encoding", None) for k in n.keywords): return False
    called = getattr(n.func, "attr", getattr(n.func, "id", ""))
    if called == "read_text": return not n.args
    if called == "write_text": return len(n.args) == 1
    if called == "fdopen" or called == "open" and isinstance(n.func, ast.Name):
        return len(n.args) < 4 and is_text_mode(n, 1)
    if called == "open":
        return bool(n.args) and re.fullmatch("[rwax+t]+", str(getattr(n.args[0], "value", ""))) is not None
    return called.endswith("TemporaryFile") and bool(n.args or n.keywords) and is_text_mode(n, 0)


@pytest.mark.parametrize(
    "code, guilty",
    [("p.read_text()", 1), ("p.read_text(encoding='utf8')", 0), ("p.write_text('x')", 1), ("open(p)", 1),
     ("open(p, 'rb')", 0), ("open(p, mode='w')", 1), ("p.open('w')", 1), ("Image.open(p)", 0),
     ("zipfile.ZipFile(p).open('name')", 0), ("NamedTemporaryFile('w')", 1), ("NamedTemporaryFile()", 0),
     ("os.fdopen(n, 'wb')", 0), ("open(p, **kw)", 0)])
def test_takes_locale(code, guilty): assert sum(map(takes_locale, ast.walk(ast.parse(code)))) == guilty


def test_text_is_utf8():
    "Files are read and written as UTF-8 on every machine: each call that opens text says so."
    code = {f"{name(nb)}, cell {c['index']}": tree_of(c) for nb in notebooks() for c in cells(nb, "code")}
    code |= {
        p.name: ast.parse(p.read_text(encoding="utf-8"))
        for d in ("", "tests", "tools")
        for p in (ROOT / d).glob("*.py")}
    found = [
        f"{where}: {ast.unparse(n)[:80]}"
        for where, tree in code.items()
        for n in ast.walk(tree)
        if takes_locale(n)]
    assert not found, "no encoding:\n" + "\n".join(found)
