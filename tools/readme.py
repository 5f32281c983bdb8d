"""Fills the generated cells of nbs/index.ipynb and renders README.md from it; `--check` only says whether both are up to date.

Generated cells are Markdown cells that start with one of
    <!-- chapters -->                            a row for every notebook: title, subtitle, module
    <!-- results studies/runs/mini_*.json --> a column for every file of runs that matches, from the `Result`s in it
`make readme` runs this. Needs the standard library, and scipy for the interval.
"""

import argparse, json, os, re, statistics, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def text(x): return "".join(x) if isinstance(x, list) else x or ""


def lines(s): return s.splitlines(keepends=True)


def load(path): return json.loads(Path(path).read_text(encoding="utf-8"))


# ---- the chapters

def chapters(nbs):
    "One row per notebook, in reading order: number, title with link, subtitle, module."
    rows = ["| | chapter | what it is about | module |", "|---|---|---|---|"]
    found = [
        p
        for p in nbs.rglob("*.ipynb")
        if p.name != "index.ipynb" and not any(s[0] in "._" for s in p.relative_to(nbs).parts)]
    for p in sorted(found, key=lambda p: (int(re.match(r"(\d*)", p.name)[1] or 1000), p.as_posix())):
        cells = load(p)["cells"]
        head = next(
            (
                text(c["source"])
                for c in cells
                if c["cell_type"] == "markdown" and text(c["source"]).startswith("# ")),
            f"# {p.stem}")
        module = re.search(r"^\s*#\|\s*default_exp\s+(\S+)",
                           "\n".join(text(c["source"]) for c in cells if c["cell_type"] == "code"), re.M)
        subtitle = re.search(r"^> *(.*\S)", head, re.M)
        number = re.match(r"\d*", p.name)[0]
        row = [number, f"[{head.splitlines()[0][2:].strip()}]({p.relative_to(nbs).as_posix()})",
               subtitle[1].rstrip(".") if subtitle else "", f"`hipro_nb.{module[1]}`" if module else ""]
        rows.append("| " + " | ".join(c.replace("|", r"\|") for c in row) + " |")
    return "\n".join(rows)


# ---- the results

def read_results(path):
    "The `Result`s of one file, as dicts: a single one, a list, or a dict that has the list under `results`."
    d = load(path)
    found = d if isinstance(d, list) else d.get("results", [d])
    found = list(found.values()) if isinstance(found, dict) else found
    for r in found:
        missing = {"method", "tasks", "seeds", "accuracy"} - set(r)
        if missing: sys.exit(f"{path}: a result has no {', '.join(sorted(missing))}")
    return found


def averages(r): return {s: statistics.fmean(row) for s, row in zip(r["seeds"], r["accuracy"])}


def paired(a, b):
    "Mean of a - b over the seeds that both have, and half the width of its 95% interval (Student's t)."
    from scipy import stats
    d = [averages(a)[s] - averages(b)[s] for s in a["seeds"] if s in b["seeds"]]
    return statistics.fmean(d), (
        stats.t.ppf(0.975, len(d) - 1) * statistics.stdev(d) / len(d) ** 0.5 if len(d) > 1 else float("nan"))


def results_table(path, ours="HiPro"):
    """One file of runs: methods in rows; average over tasks; HiPro's paired gain; then what was run, where
    and when."""
    found = read_results(path)
    best = next((r for r in found if r["method"] == ours), None)
    rows = [
        (
            f"| {path.stem.replace('_', ' ')} | average accuracy, % | {ours} is better by, points (95%"
            " interval) |"),
        "|---|---|---|"]
    for r in found:
        a = list(averages(r).values())
        mean = f"{statistics.fmean(a):.2f}" + (f" ± {statistics.pstdev(a):.2f}" if len(a) > 1 else "")
        gain = ""
        if best is not None and r is not best and set(best["seeds"]) & set(r["seeds"]):
            m, half = paired(best, r)
            gain = f"{m:+.2f}" + ("" if half != half else f" ({m - half:+.2f} to {m + half:+.2f})")
        rows.append(f"| {r['method']} | {mean} | {gain} |")
    first = best or found[0]
    facts = first.get("facts") or {}
    shots = next(
        (f"{k} {v}; " for k, v in (first.get("settings") or {}).items() if k in ("shots", "fraction")), "")
    seeds = ", ".join(map(str, first["seeds"]))
    about = (
        f"{len(first['tasks'])} tasks; {shots}seeds {seeds}; mean ± population deviation over the seeds;"
        f" {facts.get('date', 'date not noted')}, {facts.get('device', 'device not noted')}, revision"
        f" {facts.get('revision', 'not noted')}. From `nbs/{path.relative_to(path.parents[2]).as_posix()}`.")
    return "\n".join(rows) + "\n\n" + about


def results(nbs, pattern):
    found = sorted(nbs.glob(pattern))
    if not found: return f"No runs are committed yet: this table is made from `nbs/{pattern}`."
    return "\n\n".join(results_table(p) for p in found)


def fill(nb, nbs):
    "The notebook with its generated cells made anew."
    for c in nb["cells"]:
        if c["cell_type"] != "markdown": continue
        mark = re.match(r"<!-- (chapters|results) ?(\S*) -->", text(c["source"]))
        if mark:
            c["source"] = lines(
                mark[0] + "\n\n" + (chapters(nbs) if mark[1] == "chapters" else results(nbs, mark[2])))
    return nb


# ---- the README

def relink(md, nbs="nbs"):
    "Links relative to the notebook become relative to the top folder; fenced code stays as it is."
    out, fenced = [], False
    for line in md.split("\n"):
        fenced ^= line.startswith("```")
        out.append(
            line
            if fenced
            else re.sub(r"(\]\()(?![a-z]+:|#|/)([^)\s]+)(\))",
                        lambda m: m[1] + os.path.normpath(f"{nbs}/{m[2]}").replace(os.sep, "/") + m[3], line))
    return "\n".join(out)


def render_output(o):
    "Markdown of one stored output: text as text, a table as its HTML. A README carries no figures."
    if o["output_type"] == "stream":
        return f"```\n{text(o['text']).rstrip()}\n```" if o["name"] == "stdout" else ""
    if o["output_type"] == "error": sys.exit("index.ipynb has an error among its outputs")
    data = o["data"]
    if any(k.startswith("image/") for k in data):
        sys.exit("index.ipynb shows a figure; README.md cannot carry it")
    if "text/markdown" in data: return text(data["text/markdown"]).strip()
    if "text/html" in data: return re.sub(r"\n\s*\n", "\n", text(data["text/html"]).strip())
    return f"```\n{text(data.get('text/plain')).rstrip()}\n```"


def render(nb):
    "README.md from a notebook: its Markdown, its code, its stored outputs, in order."
    parts = []
    for c in nb["cells"]:
        src = text(c["source"]).strip()
        flags = set(re.findall(r"^#\|\s*(.*?)\s*$", src, re.M))
        if not src or "hide" in flags: continue
        if c["cell_type"] == "markdown": parts.append(relink(src)); continue
        if c["cell_type"] != "code": continue
        code = "\n".join(l for l in src.split("\n") if not l.startswith("#|")).strip()
        if "echo: false" not in flags: parts.append(f"```python\n{code}\n```")
        parts += [render_output(o) for o in c.get("outputs", [])]
    return "\n\n".join(p for p in parts if p) + "\n"


def dump(nb): return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if something is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="top folder of the project")
    args = parser.parse_args()
    index, readme = args.root / "nbs/index.ipynb", args.root / "README.md"
    nb = fill(load(index), args.root / "nbs")
    stale = [
        p.name
        for p, new in ((index, dump(nb)), (readme, render(nb)))
        if not p.exists() or p.read_text(encoding="utf-8") != new]
    if not args.check:
        for p, new in ((index, dump(nb)), (readme, render(nb))):
            if p.name in stale: p.write_text(new, encoding="utf-8")
        print("up to date" if not stale else "wrote " + ", ".join(stale))
    elif stale: sys.exit(f"out of date: {', '.join(stale)}; run `make readme`")


if __name__ == "__main__": main()
