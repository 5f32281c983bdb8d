"""Every method of the registry, on two tiny tasks of pictures: it learns, predicts, is saved, and is the same
in a new process and for the same seed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked
from mutants import mutants, tensor_mutants
from PIL import Image
from snapshot import snapshot
from tiny import image_folder, save_clip
from torch.testing import assert_close

from hipro_nb.baselines import METHODS, method_options
from hipro_nb.zoo import load_clip
from hipro_nb.tasks import BadData
from hipro_nb.store import FeatureStore
from hipro_nb.images import Split
from hipro_nb.folders import load_image_folder
from hipro_nb.files import load_tensors
from hipro_nb.method import load_fitted, settings_of
from hipro_nb.train import TrainConfig

pytestmark = pytest.mark.xdist_group("registry")
SMALL = dict(
    n_ctx=2, n_shared=2, n_tokens=2, n_visual=2, config=TrainConfig(lr=0.01, epochs=2, batch_size=4, seed=3))
FRESH = """
import os, sys
import torch
from hipro_nb.clip import load_clip
from hipro_nb.files import save_tensors
from hipro_nb.folders import load_image_folder
from hipro_nb.method import load_fitted
folder, *names = sys.argv[1:]
clip, tasks, fits = load_clip(folder + '/model'), load_image_folder(folder + '/data', shots=2), {}
torch.set_num_threads(2)
# PyTorch's helpers are there, and stay behind when the process forks
torch.randn(900, 900) @ torch.randn(900, 900)
for name in names:
    try:
        fitted = load_fitted(f'{folder}/{name}.safetensors', clip, tasks)
        probs = {t.name: fitted.predict(t.name, t.test.images).probs for t in tasks}
        save_tensors(f'{folder}/{name}.probs', probs)
        fits[name] = fitted
    except Exception as e: print(name, repr(e))
if not os.fork():
    for name,fitted in fits.items():
        save_tensors(f'{folder}/{name}.forked', {t.name: fitted.predict(t.name, t.test).probs for t in tasks})
    os._exit(0)
os.wait()
"""


class Walk:
    """All methods fitted twice and saved; one new process loads them all. A method that fails is told of by
    its own test."""
    def __init__(self, folder):
        image_folder(folder / "data", tasks=("art", "photo"), n=4)
        save_clip(folder / "model")
        self.folder, self.clip, self.store = folder, load_clip(str(folder / "model")), FeatureStore(None)
        self.tasks, self.error, self.probs, self.again = (load_image_folder(folder / "data", shots=2), {}, {},
                                                          {})
        for name in METHODS:
            try:self.fit(name)
            except Exception: self.error[name] = traceback.format_exc()
        self.load_anew([n for n in METHODS if n not in self.error])

    def method(self, name):
        "A method with small settings."
        cls = METHODS[name]
        return cls(**{k: v for k, v in SMALL.items() if k in method_options(cls)})

    def predictions(self, fitted):
        return {t.name: fitted.predict(t.name, t.test.images).probs for t in self.tasks}

    def fit(self, name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method = self.method(name)
            first, second = (method.fit(self.clip, self.tasks, self.store, progress=False) for _ in range(2))
        first.save(self.folder / f"{name}.safetensors")
        self.probs[name], self.again[name] = self.predictions(first), self.predictions(second)

    def load_anew(self, names):
        done = subprocess.run([sys.executable, "-c", FRESH, str(self.folder), *names], capture_output=True,
                              text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        self.said = done.stdout


@pytest.fixture(scope="session")
def walk(tmp_path_factory): return Walk(tmp_path_factory.mktemp("registry"))


@pytest.mark.parametrize("name", METHODS)
def test_method(walk, name):
    assert name not in walk.error, walk.error[name]
    kinds = {t.name: (len(t.test), len(t.classnames)) for t in walk.tasks}
    for task, probs in walk.probs[name].items():
        assert probs.shape == kinds[task] and probs.isfinite().all()
        assert_close(probs.sum(1), torch.ones(len(probs)).to(probs))
    fresh = walk.folder / f"{name}.probs"
    assert fresh.exists(), f"a new process could not load it: {walk.said}"
    assert_close(load_tensors(fresh)[0], walk.probs[name], rtol=1e-5, atol=1e-6)
    assert_close(walk.again[name], walk.probs[name], rtol=0, atol=0)
    assert_close(load_tensors(walk.folder / f"{name}.forked")[0], walk.probs[name], rtol=1e-5, atol=1e-6)


def every_form(files):
    "The same pictures as people have them."
    arrays = [np.asarray(Image.open(f)) for f in files]
    batch = torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2)
    with ExitStack() as stack:
        yield Split(files, [0] * len(files))
        yield (Image.open(f) for f in files)
        yield [f.read_bytes() for f in files]
        yield [stack.enter_context(open(f, "rb")) for f in files]
        yield np.stack(arrays)
        yield batch / 255
        yield [batch / 255, torch.zeros(len(files), dtype=torch.int64)]
        yield [(a, 0) for a in arrays]


@pytest.mark.parametrize("name", METHODS)
def test_every_form_of_images(walk, name):
    assert name not in walk.error, walk.error[name]
    fitted = load_fitted(walk.folder / f"{name}.safetensors", walk.clip, walk.tasks)
    task, right = walk.tasks[0], walk.probs[name][walk.tasks[0].name]
    for images in every_form(task.test.images):
        assert_close(fitted.predict(0, images).probs, right, rtol=1e-5, atol=1e-6)
    assert_close(fitted.predict(0, task.test.images[0]).probs, right[:1], rtol=1e-5, atol=1e-6)
    assert fitted.predict(0, []).probs.shape == (0, right.shape[1])
    for odd in (7, None, [1], task, {"image": 1}, walk.folder, walk.folder / "none.png", b"no picture"):
        with pytest.raises(BadData): fitted.predict(0, odd)


@pytest.mark.parametrize("name", METHODS)
def test_threads(walk, name):
    "Eight threads at a time, a picture each; what was loaded and the model hold what they held before."
    assert name not in walk.error, walk.error[name]
    fitted = load_fitted(walk.folder / f"{name}.safetensors", walk.clip, walk.tasks)
    asked = [(t.name, i) for t in walk.tasks for i in range(len(t.test))] * 2
    before = snapshot(fitted)
    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(fitted.predict, t, walk.tasks[fitted.index(t)].test.images[i]) for t, i in asked]
        for (t, i), o in zip(asked, done):
            assert_close(o.result().probs, walk.probs[name][t][i:i + 1], rtol=1e-5, atol=1e-6)
    assert snapshot(fitted) == before


@pytest.mark.parametrize("name", METHODS)
def test_settings(walk, name):
    "What is saved makes the same method again, as this model takes it, and the same kind of result."
    assert name not in walk.error, walk.error[name]
    loaded = load_fitted(walk.folder / f"{name}.safetensors", walk.clip, walk.tasks)
    method = walk.method(name).for_model(walk.clip)
    assert (type(loaded), loaded.title) == (METHODS[name].fitted, method.title)
    assert settings_of(loaded.method) == settings_of(method)


def check_refused(walk, monkeypatch, name, *sample):
    """A file whose checksum is right and whose contents are not is loaded, if what is wrong changes nothing,
    or refused; what is loaded predicts. Anything but `BadData` is a fault"""
    tensors, meta = load_tensors(walk.folder / f"{name}.safetensors")
    files = [(what, tensors, m) for what, m in mutants(meta, *sample)]
    files += [(what, t, meta) for what, t in tensor_mutants(tensors, *sample)]
    features, refused = torch.nn.functional.normalize(torch.ones(1, 32), dim=1), 0
    for what, *contents in files:
        monkeypatch.setattr("hipro_nb.method.load_tensors", lambda path: contents)
        for clip in (None, walk.clip):
            try:
                m = load_fitted("file", clip)
                given = Image.new("RGB", (24, 20)) if m.needs_images else features
                assert m.predict(0, given).probs.isfinite().all(), what
            except BadData: refused += 1
            except Exception as e: raise AssertionError(f"{name}, {what}: {e!r}") from e
    assert refused > len(files), "most of it is refused"


@pytest.mark.parametrize("name", METHODS)
def test_a_right_checksum_over_wrong_contents(walk, monkeypatch, name):
    assert name not in walk.error, walk.error[name]
    check_refused(walk, monkeypatch, name, 0, 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_wrong_content(walk, monkeypatch, name): check_refused(walk, monkeypatch, name)


def members(session):
    "Processes of a session that run: parent's and own number, and their words."
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, _, its = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:4]
            if int(its) == session and state != "Z":
                yield (int(parent), int(stat.parent.name),
                       (stat.parent / "cmdline").read_text(encoding="utf-8"))


def until(found, p, seconds=600):
    end = time.monotonic() + seconds
    while not found():
        assert p.is_running(), p.wait()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("moment", ["importing", "training"])
def test_compare_interrupted_with_two_jobs(tmp_path, moment):
    """Ctrl-C goes to the whole group, as from a terminal: one line, status 130, both fits' checkpoints, no
    process left; while the fork server still imports, too. The command is forked by `forked.py`, which gives
    it ears for Ctrl-C: in the background of a shell script it has none, nor have these tests.
    """
    data, model, runs = (image_folder(tmp_path / "data", tasks=("art", "photo"), n=4),
                         save_clip(tmp_path / "model"), tmp_path / "runs")
    argv = [data, "--model", model, "--shots", 2, "--n-ctx", 2, "--epochs", 20000, "--out", runs, "--methods",
            "coop,coop_mtl", "--seeds", 1, "--jobs", 2]
    p = Forked("hipro_nb.compare:hipro_compare", [str(a) for a in argv])
    at = lambda: {q.parts[-4] for q in runs.glob("data-*/*/seed1/checkpoint/nodes.safetensors")}
    server = lambda: any(parent == p.pid and "forkserver" in words for parent, _, words in members(p.pid))
    until(server if moment == "importing" else lambda: len(at()) == 2, p)
    time.sleep(0.5)
    os.killpg(p.pid, signal.SIGINT)
    status, out, err = p.wait(300)
    assert (status, err) == (130, "hipro_compare: interrupted; what was finished is kept\n")
    assert out.startswith("2 tasks, ") and out.count("\n") == 1
    # the server ends when it has imported; seconds, but on a machine that others fill
    end = time.monotonic() + 300
    while left := list(members(p.pid)):
        assert time.monotonic() < end, left
        time.sleep(0.1)
    assert not list(runs.glob("data-*/*/seed1/results.json"))
    # a fast machine may have imported, and begun
    if moment == "training": assert at() == {"coop", "coop_mtl"}
