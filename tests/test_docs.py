"""The site without Quarto: every notebook goes through nbdev's own processors as `nbdev_docs` sends it, every
link, anchor and cross-reference leads somewhere, every figure has label, caption and alternative text."""

import json
import re
from pathlib import Path

import pytest
import yaml
from forked import Forked
from project import CFG, NBS, ROOT, cells, chapters, copy_project, is_exported, name, notebooks, text

pytestmark = pytest.mark.xdist_group("docs")
every = pytest.mark.parametrize("nb", notebooks(), ids=name)
BASE = f"{CFG['doc_host']}{CFG['doc_baseurl']}/"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A copy of the project after nbdev's part of `nbdev_docs`."
    top = copy_project(tmp_path_factory.mktemp("docs") / "project")
    status, out, _ = Forked("runpy:run_path", str(top / "tests/build_docs.py"), run_name="__main__", cwd=top,
                            sys_path=[top], both=True).wait(900)
    assert status == 0, out[-8000:]
    return top


def page(site, nb):
    "`(front matter, cells)` of a notebook as Quarto gets it."
    made = json.loads((site / "_proc" / name(nb)).read_text(encoding="utf-8"))["cells"]
    front = yaml.safe_load(text(made[0]["source"]).strip().strip("-"))
    return front, made


def unquoted(md):
    "Markdown without fenced code, code spans and mathematics."
    md = re.sub(r"^(```|~~~).*?^\1\s*$", "", md, flags=re.M | re.S)
    md = re.sub(r"\$\$.*?\$\$(\s*\{#[\w-]+\})?", r"\1", md, flags=re.S)
    return re.sub(r"(`+)[^`]*?\1", "``", re.sub(r"(?<!\\)\$[^$\n]+\$", "", md))


def slug(heading):
    "Pandoc's identifier of a heading."
    s = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    s = re.sub(r"[*`$]", "", s.strip()).lower()
    s = re.sub(r"[^\w\s.-]", "", s)
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", s)) or "section"


def anchors(site, nb):
    "Every name on a page that a link can lead to."
    res = set()
    for c in page(site, nb)[1]:
        mds = (
            [text(c["source"])]
            if c["cell_type"] == "markdown"
            else [text(o.get("data", {}).get("text/markdown")) for o in c.get("outputs", [])])
        if c["cell_type"] == "code": res.update(re.findall(r"^#\|\s*label:\s*(\S+)", text(c["source"]), re.M))
        for md in mds:
            res.update(re.findall(r"\{#([\w.:-]+)", md)); res.update(re.findall(r"\bid=[\"']([^\"']+)", md))
            res.update(
                slug(re.sub(r"\{.*\}\s*$", "", h))
                for h in re.findall(
                    r"^#{1,6} +(.*?)\s*#*$", re.sub(r"^```.*?^```\s*$", "", md, flags=re.M | re.S), re.M))
    return res


@every
def test_docs_process(site, nb):
    "No error, no cell that mixes imports and code; title and subtitle became front matter."
    said = json.loads((site / "docs.json").read_text(encoding="utf-8"))[nb.name]
    assert said["error"] is None, said["error"]
    assert not said["warnings"] and "imports and other code" not in said["said"], said
    front, made = page(site, nb)
    assert front["title"] and front["description"] and front["output-file"].endswith(".html")
    shown = [
        text(o.get("text"))
        for c in made
        if "show_doc" in text(c["source"])
        for o in c.get("outputs", [])
        if o["output_type"] in ("stream", "error")]
    assert not shown, shown


@every
def test_docs_exported_names(site, nb):
    "Every public name that the notebook exports has its place on the page, and `_modidx` points there."
    syms = {}
    scope = {}
    exec((site / "hipro_nb/_modidx.py").read_text(encoding="utf-8"), scope)
    for d in scope["d"]["syms"].values(): syms.update(d)
    front, _ = page(site, nb)
    where = (Path(name(nb)).parent / front["output-file"]).as_posix()
    defined = {
        n
        for c in cells(nb, "code")
        if is_exported(c)
        for n in re.findall(r"^(?:def|class) +([a-zA-Z]\w*)", c["source"], re.M)
        if not re.search(rf"@patch[^\n]*\n(?:@[^\n]*\n)*def +{n}\b", c["source"])}
    found = anchors(site, nb)
    for n in sorted(defined):
        assert n.lower() in found, f"{n} is exported, but the page has no entry for it"
        assert any(
            s.endswith(f".{n}") and v[0] == f"{where}#{n.lower()}" for s, v in syms.items()
        ), f"_modidx does not know {n} on {where}"


@every
def test_docs_links(site, nb):
    "Relative links, doc links that nbdev made out of backticks, and anchors."
    made = [p for p in notebooks() if (site / "_proc" / name(p)).exists()]
    pages = {(Path(name(p)).parent / page(site, p)[0]["output-file"]).as_posix(): p for p in made}
    for c in page(site, nb)[1]:
        if c["cell_type"] != "markdown": continue
        for target in re.findall(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)", unquoted(text(c["source"]))):
            path, _, anchor = target.partition("#")
            if target.startswith(BASE):
                path = path[len(BASE):]
                assert path in pages, f"{target}: the site has no such page"
                to = pages[path]
            elif re.match(r"[a-z]+:", target): continue
            else:
                to = (nb.parent / path).resolve() if path else nb
                assert to.exists(), f"{target} leads nowhere"
                assert NBS.resolve() in to.parents, f"{target} leaves nbs/: the site does not have it"
            if anchor and to.suffix == ".ipynb":
                assert anchor in anchors(site, to), f"{target}: no such anchor there"


def shown(c):
    "What a cell puts on its page as Markdown."
    if c["cell_type"] == "markdown": return [text(c["source"])]
    data = [o.get("data", {}) for o in c.get("outputs", [])]
    return [text(d["text/markdown"]) for d in data if "text/markdown" in d]


@every
def test_docs_markdown(site, nb):
    """No link in code or in the text of a link, where it would stand as it is written; no name that only a
    notebook's process knows; no HTML that would have the page load jQuery from elsewhere."""
    for c in page(site, nb)[1]:
        where = f"cell {text(c['source'])[:80]!r}"
        for md in shown(c):
            fences = "\n".join(re.findall(r"^```(?!\{=html\}).*?^```", md, re.M | re.S))
            assert "](https://" not in fences or c["cell_type"] == "markdown", f"{where}: a link in code"
            assert "__main__" not in md or c["cell_type"] == "markdown", f"{where}: a name of one process"
            links = re.findall(r"\[[^\[\]]*\[[^\[\]]*\]\([^)\s]*\)[^\[\]]*\]\([^)\s]*\)", unquoted(md))
            assert not [l for l in links if "![" not in l], f"{where}: a link in a link, {links}"
        for o in c.get("outputs", []):
            widgets = {"text/html", "application/vnd.jupyter.widget-view+json"} & set(o.get("data", {}))
            assert not widgets, f"{where}: {widgets}"


@every
def test_docs_references(site, nb):
    "`@fig-`, `@eq-`, `@tbl-`, `@sec-` refer to a label of the same page, and labels are unique."
    made = page(site, nb)[1]
    labels = [
        l
        for c in made
        for l in (
            re.findall(r"^#\|\s*label:\s*(\S+)", text(c["source"]), re.M)
            if c["cell_type"] == "code"
            else re.findall(r"\{#((?:fig|tbl|eq|sec|lst)-[\w-]+)", text(c["source"])))]
    assert len(labels) == len(
        set(labels)), f"a label is there twice: {sorted({l for l in labels if labels.count(l) > 1})}"
    wanted = {
        r
        for c in made
        if c["cell_type"] == "markdown"
        for r in re.findall(r"(?<![\w@])@((?:fig|tbl|eq|sec|lst)-[\w-]+)", unquoted(text(c["source"])))}
    assert wanted <= set(labels), f"no label for {sorted(wanted - set(labels))}"


@every
def test_docs_figures(nb):
    for c in cells(nb, "code"):
        shown = [k for o in c["outputs"] for k in o.get("data", {}) if k.startswith("image/")]
        if not shown or "hide" in c["directives"]: continue
        d = c["directives"]
        assert d.get("label", "").startswith(
            "fig-"), f"cell {c['index']} shows a figure and has no label fig-..."
        for part in ("fig-cap", "fig-alt"):
            said = yaml.safe_load(d.get(part) or "''")
            assert isinstance(said, str) and len(said.split()) >= 3, f"cell {c['index']}: no {part}"
        assert "export" not in d, f"cell {c['index']} is exported: the page shows no figure of it"


def test_docs_sidebar(site):
    """The sidebar lists index, then every chapter in reading order, each in the section of its folder; the
    site's settings arrive."""
    contents = yaml.safe_load((site / "nbs/sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"][
        "contents"]
    assert contents[0] == "index.ipynb"
    listed = [c for part in contents[1:] for c in part["contents"]]
    assert listed == [name(p) for p in chapters()]
    folders = [{Path(c).parent for c in part["contents"]} for part in contents[1:]]
    assert all(len(f) == 1 for f in folders) and len(set.union(*folders)) == len(
        folders), "a part is a folder and a section"
    made = yaml.safe_load((site / "nbs/nbdev.yml").read_text(encoding="utf-8"))
    assert made["project"]["output-dir"] == CFG["doc_path"] and made["website"]["title"] == CFG["lib_name"]
    assert (site / "_proc/_quarto.yml").read_text(encoding="utf-8") == (ROOT / "_quarto.yml").read_text(
        encoding="utf-8")


def test_docs_settings():
    assert (NBS / "_quarto.yml").is_symlink() and (NBS / "_quarto.yml").resolve() == ROOT / "_quarto.yml"
    q = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    assert q["project"]["type"] == "website" and {"nbdev.yml", "sidebar.yml"} <= set(q["metadata-files"])
    assert "commonmark" in q["format"] and q["format"]["html"]["keep-md"] is True
    assert (NBS / q["format"]["html"]["css"]).exists()


def test_read_site(tmp_path, monkeypatch):
    "What `make docs-check` finds without a browser: links, names on a page, alternative texts."
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import check_site
    (tmp_path / "a").mkdir()
    good = '<a href="../b.html#here">x</a> <a href="https://example.org">x</a> <img src="p.png" alt="">'
    bad = '<h2 id="here">x</h2><a href="a/c.html">x</a> <a href="#there">x</a> <img src="q.png">'
    (tmp_path / "a/a.html").write_text(good, encoding="utf-8")
    (tmp_path / "b.html").write_text(bad, encoding="utf-8")
    (tmp_path / "404.html").write_text('<a href="/elsewhere/b.html">x</a>', encoding="utf-8")
    assert list(check_site.faults_read(tmp_path)) == [
        ("b.html", "a/c.html leads nowhere"), ("b.html", "#there: no such name there"),
        ("b.html", "a picture without an alternative text: q.png")]
