"""A run's numbers belong to its settings: one command at a time, options that are in effect or refused, files
that are the same for the same command."""

import contextlib
import json
import re
import shutil
import signal
import time
import warnings
from dataclasses import replace

import pytest
import torch
from forked import Forked
from project import ROOT
from tiny import image_folder, save_clip

from hipro_nb.baselines import METHODS, RUN_OPTIONS, run_options
from hipro_nb.cli import (HOLDER, RunSettings, fit_method, hipro_fit, hipro_predict, new_method, open_model,
                          uses_val)
from hipro_nb.compare import hipro_compare
from hipro_nb.tasks import BadData
from hipro_nb.store import FeatureStore
from hipro_nb.files import load_tensors
from hipro_nb.method import settings_of

pytestmark = pytest.mark.xdist_group("runs")
DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    image_folder(home / "data", tasks=("art", "photo"), classes=("apple", "plum"), n=5)
    save_clip(home / "model")
    torch.set_num_threads(1)
    return home


def words(home, name, shots=1, **more):
    "A short command; `more` are options."
    given = dict(model=home / "model", shots=shots, seeds=1, out=home / "runs", name=name) | more
    pairs = [("--" + k.replace("_", "-"), str(v)) for k, v in given.items() if v is not None]
    return [str(home / "data"), *(w for pair in pairs for w in pair)]


def coop(home, name, shots=1): return words(home, name, shots, method="coop_mtl", epochs=1, n_ctx=2)


def until(found, seconds=300):
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_one_command_at_a_time(home, capfd):
    """A second command is refused while a process works in the folder, also before its first seed; when it
    was killed, the next takes over and says so."""
    folder = home / "runs" / "shared"
    other = Forked("tiny:hold_for_ever", str(folder), sys_path=[ROOT / "tests"])
    said = rf"shared is in use: process {other.pid} on \S+ \(\S+, since 20.*\) works there; wait for its end"
    try:
        until((folder / HOLDER).exists)
        for more in ([], ["--resume"]):
            assert hipro_fit(coop(home, "shared", 2) + more) == 2
            out, err = capfd.readouterr()
            assert out == "" and re.search(said, err)
        assert not (folder / "run.json").exists()
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert hipro_fit(coop(home, "shared")) == 0
    assert re.search(rf"process {other.pid} on .* was ended before it was done; this command takes over",
                     capfd.readouterr().err)
    assert not (folder / HOLDER).exists()
    assert hipro_fit(coop(home, "shared", 2) + ["--resume"]) == 2
    assert "settings.shots was 1, is 2" in capfd.readouterr().err
    assert hipro_fit(coop(home, "shared") + ["--resume"]) == 0


def test_one_shot_is_not_reported_as_two(home, capfd):
    """The `run.json` of one command beside the results of another: refused on `--resume` and by
    `hipro_predict`, naming the difference."""
    for name, shots in (("one", 1), ("two", 2)): assert hipro_fit(coop(home, name, shots)) == 0
    shutil.copy(home / "runs/two/run.json", home / "runs/one/run.json")
    capfd.readouterr()
    assert hipro_fit(coop(home, "one", 2) + ["--resume"]) == 2
    assert "one/seed1 was made with something else: settings.shots was 1, is 2" in capfd.readouterr().err
    assert hipro_predict([str(home / "runs/one"), str(home / "data/art/plum/0.png")]) == 2
    assert "one/seed1 was made with something else" in capfd.readouterr().err
    assert hipro_predict([str(home / "runs/two"), str(home / "data/art/plum/0.png")]) == 0


def test_another_picture_is_another_run(home, capfd):
    "A seed whose images were changed is refused, though names and numbers are the same."
    data = shutil.copytree(home / "data", home / "moving") / "art" / "plum"
    argv = [w.replace(str(home / "data"), str(home / "moving")) for w in coop(home, "moved")]
    assert hipro_fit(argv) == 0
    shutil.copy(home / "data/art/apple/0.png", data / "0.png")
    capfd.readouterr()
    assert hipro_fit(argv + ["--resume"]) == 2
    assert "was run on other images" in capfd.readouterr().err


def test_validation_images_are_told_of(home, capfd):
    "In one line, where the method or some of the methods have no use for them."
    for task in ("art", "photo"):
        image_folder(home / "parts" / task, tasks=("train", "val", "test"), classes=("apple", "plum"), n=2)
    def argv(name, **more): return [str(home / "parts"), *words(home, name, None, **more)[1:]]
    assert hipro_fit(argv("parts", method="zero_shot")) == 0
    assert "8 validation images (of art, photo) are not used by zero_shot; " in capfd.readouterr().err
    assert hipro_compare(argv(None, methods="zero_shot,linear_probe", jobs=0)) == 0
    assert "8 validation images (of art, photo) are used by linear_probe alone; " in capfd.readouterr().err
    assert hipro_fit(argv("probe", method="linear_probe")) == 0
    assert "validation" not in capfd.readouterr().err
    assert all(uses_val(METHODS[k]) for k in ("linear_probe", "jscpt"))


OTHER = dict(n_ctx=3, lr=0.05, epochs=4, batch_size=3, dtype="float64", views=2, chunk=5)


class Fits:
    "Methods as `hipro_fit` makes them, fitted on two tiny tasks; what they learned, by method and option."
    def __init__(self, home):
        self.clip, self.store = open_model(str(home / "model")), FeatureStore(None)
        self.settings = RunSettings(
            str(home / "data"), str(home / "model"), shots=2, lr=0.01, epochs=2, batch_size=4)
        self.tasks, self.usual = self.settings.tasks(1), {}

    def learned(self, method, **option):
        "All tensors that a fit leaves."
        settings = replace(self.settings.for_method(method), **option)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted, _ = fit_method(self.clip, self.tasks, settings, 1, progress=False, store=self.store)
        own = {f"head.{i}": h for i, h in enumerate(fitted.heads) if h is not None}
        return fitted, own | fitted.tensors()


@pytest.fixture(scope="module")
def fits(home): return Fits(home)


@pytest.mark.parametrize("method", METHODS)
def test_options_are_in_effect_or_refused(fits, method):
    """Every option that is not its default changes what is learned (a smaller chunk only how), and is in the
    method's settings; or is refused by its name."""
    usual, plain = fits.learned(method)
    for option, value in OTHER.items():
        settings = replace(fits.settings.for_method(method), **{option: value})
        with contextlib.suppress(BadData):
            settings.check_views(fits.clip, new_method(settings, 1), fits.tasks)
            assert option in run_options(METHODS[method]), f"{option} is taken and has no effect"
            found, tensors = fits.learned(method, **{option: value})
            told = settings_of(found.method)
            if option == "n_ctx": assert told["n_ctx"] == 3
            if option in ("lr", "epochs", "batch_size", "dtype"): assert told["config"][option] == value
            if option == "chunk": assert found.method.chunk == value and found.method.recompute
            same = {k: v.shape == plain[k].shape and torch.equal(v, plain[k]) for k, v in tensors.items()}
            if option != "chunk": assert not all(same.values()), f"{option} {value} changes nothing"
            continue
        with pytest.raises(BadData, match=f"--{option.replace('_', '-')} {value} with "):
            settings.check_options()
            settings.check_views(fits.clip, new_method(settings, 1), fits.tasks)


def contents(folder):
    "All files of a folder, dates and costs left out."
    found = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    texts = {
        k: DATE.sub("DATE", v.decode()) for k, v in found.items() if k.endswith((".json", ".md", ".svg"))}
    return found | texts


def test_same_command_same_bytes(home):
    """Tensors, records, results, tables and figures of the same command are the same bytes in another
    process, with other hashes of strings, but for the dates."""
    argv = {
        place: words(home, "run", 2, seeds=2, epochs=2, n_ctx=2, out=home / place)
        for place in ("first", "second")}
    other = Forked("tiny:fit_alone", argv["first"], sys_path=[ROOT / "tests"])
    assert hipro_fit(argv["second"]) == 0 and other.wait()[0] == 0
    made = [contents(home / place / "run") for place in argv]
    written = {"seed1/model.safetensors", "seed1/classifiers.safetensors", "seed2/affinity.png", "tree.svg",
               "results.md", "run.json"}
    assert written <= set(made[0])
    assert made[0].keys() == made[1].keys()
    assert [k for k in made[0] if made[0][k] != made[1][k]] == []
    texts = [p for p in (home / "first/run").glob("*.*") if p.suffix in (".json", ".md")]
    dates = {p.name: len(DATE.findall(p.read_text(encoding="utf-8"))) for p in texts}
    assert dates == {"results.json": 5, "results.md": 1, "run.json": 0}, "one a result, and one in the page"


def test_same_comparison_same_bytes(home):
    "The same of every method's tensors; of its results without what they cost."
    made = []
    for place in ("third", "fourth"):
        argv = words(home, None, 2, epochs=2, out=home / place,
                     methods="cocoop,jscpt,linear_probe,mmap,zero_shot", jobs=0)
        assert hipro_compare(argv) == 0
        (folder,) = (home / place).glob("data-*")
        found = {
            p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.glob("*/seed1/*.safetensors")}
        for p in folder.glob("*/seed1/results.json"):
            whole = json.loads(DATE.sub("DATE", p.read_text(encoding="utf-8")))
            assert whole["facts"].pop("cost").keys() >= {"seconds", "parameters"}
            found[p.relative_to(folder).as_posix()] = whole
        made.append(found)
    assert len(made[0]) == 10 and made[0].keys() == made[1].keys()
    assert [k for k in made[0] if made[0][k] != made[1][k]] == []
