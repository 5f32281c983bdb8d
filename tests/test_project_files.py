"The files around the project that other programs read: workflows, templates, citation."
import pytest
import yaml
from project import CFG, ROOT

FILES = sorted([*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff"])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_citation():
    "The citation names the library as settings.ini does, and both papers with their authors."
    c = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (c["title"], c["license"], c["cff-version"]) == (CFG["lib_name"], "Apache-2.0", "1.2.0")
    papers = {p["title"]: (p["year"], len(p["authors"])) for p in c["references"]}
    assert papers == {"Hierarchical Prompt Learning for Multi-Task Learning": (2023, 9),
                      "Joint Scheduling of Causal Prompts and Tasks for Multi-Task Learning": (2025, 6)}


def test_workflow_pythons():
    """Public CI tests the oldest Python that the package promises, and three in all, by the command of this
    repository."""
    job = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"]["test"]
    pythons = job["strategy"]["matrix"]["python"]
    assert CFG["min_python"] in pythons and len(pythons) >= 3
    assert job["steps"][-1]["run"] == ".ci/run" and job["timeout-minutes"] >= 90
