"""A chapter imports only from chapters above it, by name; the chapters that are mathematics import no models
or data; importing the package is light."""

import ast
import sys

import pytest
from project import LIB, ROOT, cells, chapters, is_exported, module_of, name, number, run, tree_of

# Chapters that stand before what they import; none
LATE = ()
LAST = max(i for i, nb in enumerate(chapters()) if name(nb).startswith("engine/"))
# in reading order
PLACE = {nb: i if name(nb) not in LATE else LAST + (i + 1) / 100 for i, nb in enumerate(chapters())}
ORDER = {module_of(nb): i for nb, i in PLACE.items() if module_of(nb)}
# a package is imported by its own name
ORDER |= {m.removesuffix(".__init__"): n for m, n in ORDER.items()}
PURE = {"loss", "affinity", "tree", "fuse", "bilevel"}
HEAVY = {"open_clip", "torchvision", "timm", "PIL"}
# exports nothing; borrows pictures and model, and compares itself at its end with the library derived after
# it
OVERTURE = "start/00_from_scratch.ipynb"


def imports(tree, package="hipro_nb"):
    "`(module, names)` of every import, those inside functions too; relative ones are made absolute."
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): yield from ((a.name, []) for a in n.names)
        if isinstance(n, ast.ImportFrom):
            base = package.split(".")[:len(package.split(".")) - n.level + 1] if n.level else []
            yield ".".join(base + ([n.module] if n.module else [])), [a.name for a in n.names]


def own(tree, package="hipro_nb"):
    "Modules of this package that are imported, without the package's name."
    for mod, names in imports(tree, package):
        if mod == "hipro_nb": yield from (n for n in names if n in ORDER)
        elif mod.startswith("hipro_nb."): yield mod[len("hipro_nb."):]


@pytest.mark.parametrize("module", [module_of(nb) for nb in chapters() if module_of(nb)])
def test_exported_order(module):
    path = LIB / (module.replace(".", "/") + ".py")
    assert path.exists(), f"{path.name} is missing: make export"
    tree, package = ast.parse(path.read_text(encoding="utf-8")), "hipro_nb." + module
    wrong = [m for m in own(tree, package.rpartition(".")[0]) if ORDER.get(m, -1) >= ORDER[module]]
    assert not wrong, f"{module} imports {', '.join(wrong)}, not above it"
    stars = [m for m, names in imports(tree, package.rpartition(".")[0]) if "*" in names]
    assert not stars, f"{module} imports * from {stars}"


@pytest.mark.parametrize("nb", chapters(), ids=name)
def test_notebook_order(nb):
    for c in cells(nb, "code"):
        if "eval" in c["directives"]: continue
        for m in own(tree_of(c)):
            above = ORDER.get(m, PLACE[nb]) < PLACE[nb] or name(nb) == OVERTURE
            assert above, f"cell {c['index']} imports {m}, which is not above {name(nb)}"
        for m, names in imports(tree_of(c)):
            assert "*" not in names or not (
                m.startswith("hipro_nb") or is_exported(c)), f"cell {c['index']} imports * from {m}"


@pytest.mark.parametrize("nb", chapters(), ids=name)
def test_no_private_name_is_imported(nb):
    "What another chapter needs has a name without an underscore."
    for c in cells(nb, "code"):
        for mod, names in imports(tree_of(c)):
            private = [n for n in names if n.startswith("_")]
            assert not (private and mod.startswith("hipro_nb")), f"cell {c['index']} imports {private}"


PARTS = dict(start=range(0, 1), paper=range(1, 10), engine=range(10, 20), pictures=range(20, 40),
             methods=range(40, 60), scheduling=range(60, 70), running=range(70, 80), studies=range(80, 100))
PART_OF = {module_of(nb): list(PARTS).index(nb.parent.name) for nb in chapters() if module_of(nb)}


@pytest.mark.parametrize("nb", chapters(), ids=name)
def test_parts(nb):
    "A chapter has a number of its part, and its module imports nothing from a later part."
    assert number(nb) in PARTS[nb.parent.name], f"{name(nb)}: expected a number of {PARTS[nb.parent.name]}"
    module = module_of(nb)
    if not module or name(nb) in LATE: return
    tree = ast.parse((LIB / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    package = ("hipro_nb." + module).rpartition(".")[0]
    later = [m for m in own(tree, package) if PART_OF.get(m, -1) > PART_OF[module]]
    assert not later, f"{module} imports {', '.join(later)} from a later part"


@pytest.mark.parametrize("module", sorted(PURE & ORDER.keys()))
def test_mathematics_stands_alone(module):
    tree = ast.parse((LIB / f"{module}.py").read_text(encoding="utf-8"))
    assert set(own(tree)) <= PURE | {"tasks"}
    words = [names for m, names in imports(tree, "hipro_nb") if m == "hipro_nb.tasks"]
    assert set(sum(words, [])) <= {"BadData", "plain_text"}, "of the tasks it knows errors and names alone"
    assert not {m.split(".")[0] for m, _ in imports(tree)} & HEAVY


def test_package_import_is_light():
    code = (
        "import sys, hipro_nb; sys.exit(' '.join(sorted({'torch', 'numpy', 'open_clip', 'matplotlib',"
        " 'fastcore'} & sys.modules.keys())) or 0)")
    status, out = run(sys.executable, "-c", code, cwd=ROOT)
    assert status == 0, f"import hipro_nb imports {out}"
