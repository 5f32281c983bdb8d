"""Prediction changes nothing: right from any number of threads, after a fork and beside other fits, and the
hundred-thousandth picture costs what the first one cost."""

import gc
import os
import signal
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from forked import Forked
from project import ROOT
from snapshot import snapshot
from tiny import coloured, random_clip
from torch.testing import assert_close

import hipro_nb.images
import hipro_nb.store
from hipro_nb.baselines import METHODS
from hipro_nb.tower import PromptTower
from hipro_nb.tasks import BadData, Features, Task
from hipro_nb.store import FeatureStore, encode_images
from hipro_nb.frozen import FrozenCLIP
from hipro_nb.images import Split
from hipro_nb.method import Method, ZeroShot
from hipro_nb.visual import DeepPromptTower

CLASSES = ("red", "green", "blue", "yellow")


def make_clip():
    return FrozenCLIP(random_clip(), open_clip.get_tokenizer("RN50"),
                      open_clip.image_transform(32, is_train=False), "tiny")


def pictures(n, start=0): return [coloured(i, 1000 + i) for i in range(start, start + n)]


def make_task(name="colours"):
    part = Split(pictures(12, 5000), [i % 4 for i in range(12)])
    return Task(name, CLASSES, part, part)


def fitted(store=None, clip=None):
    return METHODS["linear_probe"](C=100.0).fit(clip or make_clip(), [make_task()], store, progress=False)


@pytest.fixture(scope="module")
def known():
    "300 pictures, and what a method without a store says of them, one by one."
    method, images = fitted(), pictures(300)
    return images, torch.cat([method.predict(0, o).probs for o in images])


@pytest.fixture
def hasty():
    "Threads take turns a thousand times as often as usual."
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def ask(method, images, n):
    "Each picture by itself, from `n` threads at a time."
    with ThreadPoolExecutor(n) as pool:
        return torch.cat([p.probs for p in pool.map(lambda o: method.predict(0, o), images)])


@pytest.mark.parametrize("n", [2, 8])
@pytest.mark.parametrize("where", ["nowhere", "memory", "disk"])
def test_threads(known, hasty, tmp_path, where, n):
    images, right = (o[:60 if where == "disk" else 300] for o in known)
    store = dict(nowhere=None, memory=FeatureStore(), disk=FeatureStore(tmp_path))[where]
    method = fitted(store)
    for _ in range(2): assert_close(ask(method, images, n), right)
    if store is None: return
    # and the store holds no wrong row
    for one in (store, FeatureStore(store.dir) if where == "disk" else store):
        assert_close(one.features(method.clip, images, progress=False), encode_images(method.clip, images))


def test_one_picture_held_by_all(known, hasty, tmp_path):
    "A picture that is not decoded yet, and an open file, asked for by all threads at once."
    images, right = known
    images[0].save(tmp_path / "a.png")
    method = fitted()
    with open(tmp_path / "a.png", "rb") as f:
        for o in (f, hipro_nb.images.Image.open(tmp_path / "a.png")):
            assert_close(ask(method, [o] * 16, 8), right[:1].expand(16, -1))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_torchs_threads_stays(threads):
    usual, method, seen = torch.get_num_threads(), fitted(), []
    torch.set_num_threads(threads)
    def look():
        for o in pictures(5):
            method.predict(0, [o] * 9)
            with ThreadPoolExecutor(1) as new: seen.append(new.submit(torch.get_num_threads).result())
    try:
        crew = [threading.Thread(target=look) for _ in range(4)]
        for t in crew: t.start()
        for t in crew: t.join()
        assert torch.get_num_threads() == threads and set(seen) == {threads}
    finally: torch.set_num_threads(usual)


def kept():
    "What the modules themselves hold on to"
    return [hipro_nb.images._first_of, hipro_nb.images._room, hipro_nb.store._crews.made.keys()]


def test_nothing_is_kept():
    method, images = fitted(), pictures(60)
    method.predict(0, images[:9])
    before, caches = snapshot(method), snapshot(kept())
    for o in images: method.predict(0, o)
    method.predict(0, iter(images)), method.predict(0, Split(images, [0] * 60)), method.evaluate(
        [make_task()])
    assert snapshot(method) == before
    assert snapshot(kept()) == caches


def test_a_fit_keeps_its_own_pictures_and_evaluate_no_others(monkeypatch):
    task = make_task()
    method = METHODS["linear_probe"](C=100.0).fit(make_clip(), [task], progress=False)
    done, decode = [], hipro_nb.store._decode
    monkeypatch.setattr(
        hipro_nb.store, "_decode", lambda clip, item: done.append(item) or decode(clip, item))
    method.evaluate([task])
    assert not done, "known from the fit"
    other = Task(task.name, task.classnames, task.train, Split(pictures(7), [0] * 7))
    for n in (7, 14):
        method.evaluate([other])
        assert len(done) == n


def test_two_fits_share_a_store(tmp_path, hasty):
    "Two fits, and eight threads that predict, at the same time, with one store on disk."
    store, images, clip = FeatureStore(tmp_path, shard_size=5), pictures(20), make_clip()
    method = fitted(store, clip)
    right = torch.cat([fitted(None, clip).predict(0, o).probs for o in images])
    with ThreadPoolExecutor(10) as pool:
        fits = [pool.submit(fitted, s, clip) for s in (store, FeatureStore(tmp_path))]
        asked = [pool.submit(ask, method, images, 4) for _ in range(2)]
        for a in asked: assert_close(a.result(), right)
        for f in fits: assert_close(ask(f.result(), images[:5], 1), right[:5])


def forked_predictions():
    "In a process of its own: PyTorch's helpers are at work, others predict, and then it forks."
    torch.set_num_threads(2)
    torch.randn(900, 900) @ torch.randn(900, 900)
    method, images, go_on = fitted(), pictures(6), [True]
    rows = encode_images(method.clip, images).repeat(4000, 1)
    right = (method.predict(0, images).probs, method.predict(0, rows).probs,
             method.evaluate([make_task()]).accuracy)
    def others():
        while go_on: method.predict(0, images)
    crew = [threading.Thread(target=others) for _ in range(3)]
    for t in crew: t.start()
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        same = all(
            torch.allclose(method.predict(0, x).probs, r, atol=1e-6) for x, r in zip((images, rows), right))
        os._exit(0 if same and method.evaluate([make_task()]).accuracy == right[2] else 3)
    status = os.waitpid(pid, 0)[1]
    go_on.clear()
    for t in crew: t.join()
    assert torch.get_num_threads() == 2
    return os.waitstatus_to_exitcode(status)


def test_after_a_fork():
    status, out, err = Forked(
        "test_predict:forked_predictions", sys_path=[ROOT, ROOT / "tests"], both=True).wait(120)
    assert status == 0, out[-2000:]


@pytest.mark.parametrize("kind", ["plain", "whole", "deep"])
def test_text_towers(hasty, kind):
    """A method whose prompts depend on the image runs the text tower under `predict`: each thread has its own
    context in it."""
    clip, names = make_clip(), ["red", "light green", "blue"]
    tower = (
        DeepPromptTower(clip, names, 2, whole=True)
        if kind == "deep"
        else PromptTower(clip, names, 2, whole=kind == "whole"))
    ctx = torch.randn(96, 2, 2, tower.width, generator=torch.Generator().manual_seed(0))
    if kind != "deep": ctx = ctx[:, 0]
    before = snapshot(tower)
    with torch.no_grad(): right = [tower(c[None]) for c in ctx]
    def run(c):
        with torch.no_grad(): return tower(c[None])
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(run, ctx), right): assert_close(got, want)
    assert snapshot(tower) == before and not torch.equal(right[0], right[1])


@pytest.mark.parametrize("x, why", [
    (torch.full((2, 32), torch.nan), "not finite"), (torch.full((2, 32), torch.inf), "not finite"),
    (torch.zeros(2, 32), "all zero"), (torch.ones(2, 7), "width 32"), (torch.ones(2, 2, 2, 2, 2), "shape"),
    (np.full((2, 32), np.nan), "not finite"), (torch.ones(32), "shape"), (torch.ones(0, 7), "width 32")])
def test_features_that_cannot_be_classified(x, why):
    for method in (fitted(), ZeroShot().fit(make_clip(), [make_task()], progress=False)):
        with pytest.raises(BadData, match=why): method.predict(0, x)
        if isinstance(x, torch.Tensor) and x.ndim == 2:
            with pytest.raises(BadData, match=why): method.predict(0, Features(x, [0] * len(x)))


def test_features_of_another_length_are_divided_by_it():
    method = fitted()
    x = encode_images(method.clip, pictures(3))
    with pytest.warns(UserWarning, match="divided by their norms"): got = method.predict(0, 7 * x)
    assert_close(got.probs, method.predict(0, x).probs)
    for same in (x.half(), x.bfloat16(), x.double(), x.numpy()):
        assert_close(method.predict(0, same).probs, got.probs, rtol=2e-2, atol=2e-2, check_dtype=False)


@pytest.mark.slow
def test_a_hundred_thousand_pictures():
    "Neither a call's time nor the process's memory grows."
    class Nearest(Method):
        def _fit(self, job): return self.made(job, heads=[job.tasks[0].train.x[:4]])
    method, seconds, sizes = Nearest().fit(make_clip(), [make_task()], progress=False), [], []
    rng = np.random.default_rng(0)
    for i in range(100_000):
        image = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        began = time.perf_counter()
        method.predict(0, image)
        seconds.append(time.perf_counter() - began)
        if i % 10_000 == 9_999:
            gc.collect()
            sizes.append(
                int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
                * os.sysconf("SC_PAGE_SIZE")
                / 2**20)
    first, last = (statistics.median(s) for s in (seconds[1000:6000], seconds[-5000:]))
    assert last < 2 * first and sizes[-1] < sizes[1] + 20, (first, last, sizes)
