"""Fills the generated cells of nbs/index.ipynb and renders README.md from it; `--check` only says if both are
current.

Generated cells are Markdown cells that start with one of
    <!-- picture CHAPTER LABEL -->  a chapter's stored figure, written to nbs/LABEL.png, with its caption
    <!-- results -->                a row for every file of `RUNS`, from the `Result`s in it
A cell that starts with <!-- site only --> is on the site and not in the README.
`make readme` runs this. Needs the standard library, and scipy for the interval.
"""

import argparse, base64, json, os, re, statistics, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# files of nbs/studies/runs, and what a reader is told about their data
RUNS = {
    "mini_families": "drawings, *families*, 4 shots",
    "mini_domains": "drawings, *domains*, 4 shots",
    "office_caltech10_4shot": "photographs, office_caltech10, 4 shots",
    "all_mini_families": "drawings, *families*, 4 shots",
    "all_mini_domains": "drawings, *domains*, 4 shots, fewer steps",
    "all_office_caltech10_10": "photographs, office_caltech10, 10%",
    "all_office_caltech10_20": "photographs, office_caltech10, 20%",
    "all_cifar100_10": "photographs, CIFAR-100, 10 shots",
    "all_cifar100_20": "photographs, CIFAR-100, 20 shots",
}
FIVE = ("zero-shot", "CoOp", "CoOp-MTL", "Shr+Ind", "HiPro")


def text(x): return "".join(x) if isinstance(x, list) else x or ""


def lines(s): return s.splitlines(keepends=True)


def load(path): return json.loads(Path(path).read_text(encoding="utf-8"))


# ---- the picture

def picture(nbs, chapter, label):
    "Markdown that shows a chapter's figure as LABEL.png, and that file's bytes."
    for c in load(nbs / chapter)["cells"]:
        said = dict(re.findall(r"^#\|\s*([\w-]+):\s*(.*?)\s*$", text(c["source"]), re.M))
        shown = [o["data"]["image/png"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
        if said.get("label") == label and shown:
            caption, alt = (json.loads(said[k]) for k in ("fig-cap", "fig-alt"))
            # in one paragraph: alone, Pandoc would print the alternative text as a caption
            return f"![{alt}]({label}.png)\\\n*{caption}*", base64.b64decode(text(shown[0]))
    sys.exit(f"{chapter} stores no figure labelled {label}")


# ---- the results

def read_results(path):
    "The `Result`s of one file by method: a list, a dict, or either of them under `results`."
    d = load(path)
    found = d if isinstance(d, list) else d.get("results", [d])
    found = list(found.values()) if isinstance(found, dict) else found
    for r in found:
        missing = {"method", "tasks", "seeds", "accuracy"} - set(r)
        if missing: sys.exit(f"{path}: a result has no {', '.join(sorted(missing))}")
    return {r["method"]: r for r in found}


def averages(r): return {s: statistics.fmean(row) for s, row in zip(r["seeds"], r["accuracy"])}


def mean(r): return statistics.fmean(averages(r).values())


def paired(a, b):
    "Mean of a - b over the seeds that both have, and half the width of its 95% interval (Student's t)."
    from scipy import stats
    one, other = averages(a), averages(b)
    d = [one[s] - other[s] for s in one if s in other]
    wide = stats.t.ppf(0.975, len(d) - 1) * statistics.stdev(d) / len(d) ** 0.5
    return statistics.fmean(d), wide


def results_row(told, found):
    "A row of the table: the paper's five methods, HiPro minus CoOp, and the highest of all that were run."
    m, half = paired(found["HiPro"], found["CoOp"])
    best = sorted(found.values(), key=mean, reverse=True)[:3] if len(found) > len(FIVE) else []
    cells = [told, str(len(found["HiPro"]["seeds"])), *(f"{mean(found[k]):.1f}" for k in FIVE)]
    # an interval is not broken over lines
    cells += [f"{m:+.1f} ({m - half:+.1f}\u00a0to\u00a0{m + half:+.1f})"]
    cells += [", ".join(f"{r['method']} {mean(r):.1f}" for r in best)]
    return "| " + " | ".join(cells) + " |"


def results(nbs):
    head = ["data", "seeds", *FIVE, "HiPro - CoOp (95%)", "highest of all methods"]
    rows = [results_row(told, read_results(nbs / f"studies/runs/{k}.json")) for k, told in RUNS.items()]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *rows])


def fill(nb, nbs):
    "The notebook with its generated cells made anew, and the files that they show, by name."
    files = {}
    for c in nb["cells"]:
        found = re.match(r"<!-- (picture|results) ?(\S*) ?(\S*) -->", text(c["source"]))
        if c["cell_type"] != "markdown" or not found: continue
        mark, kind, chapter, label = found[0], *found.groups()
        if kind == "picture": md, files[f"{label}.png"] = picture(nbs, chapter, label)
        else: md = results(nbs)
        c["source"] = lines(f"{mark}\n\n{md}")
    return nb, files


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
        if not src or "hide" in flags or src.startswith("<!-- site only -->"): continue
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
    nb, files = fill(load(index), args.root / "nbs")
    made = {args.root / "nbs" / name: data for name, data in files.items()}
    made |= {index: dump(nb).encode(), readme: render(nb).encode()}
    stale = [p for p, new in made.items() if not p.exists() or p.read_bytes() != new]
    names = ", ".join(p.name for p in stale)
    if args.check:
        if stale: sys.exit(f"out of date: {names}; run `make readme`")
        return
    for p in stale: p.write_bytes(made[p])
    print(f"wrote {names}" if stale else "up to date")


if __name__ == "__main__": main()
