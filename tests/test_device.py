"""The library on a GPU: every method, its numbers those of the CPU, what it saves usable elsewhere. `make
test` shows it on a stand-in (`stand_in.py`), which refuses what CUDA refuses; `make test-gpu` shows the same
on a real one."""

import contextlib
import io
import json
import traceback
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
from forked import Forked
from project import ROOT
from stand_in import StandIn, missing, register
from tiny import image_folder, save_clip

from hipro_nb.baselines import METHODS, method_options
from hipro_nb.baselines.coop import ParameterTrainer
from hipro_nb.cli import hipro_fit, hipro_predict
from hipro_nb.zoo import load_clip
from hipro_nb.store import FeatureStore
from hipro_nb.folders import load_image_folder
from hipro_nb.method import load_fitted
from hipro_nb.schedule import BilevelTrainer
from hipro_nb.train import PromptTrainer, TrainConfig

pytestmark = pytest.mark.xdist_group("device")
SMALL = dict(n_ctx=2, n_shared=2, n_tokens=2, n_visual=2, depth=1)
# one of each training loop, and one with prompts inside the image tower
STOPPED = ("hipro", "cocoop", "maple", "jscpt")
needs_stand_in = pytest.mark.skipif(missing() is not None, reason=f"no stand-in for a GPU: {missing()}")


def prepare(folder):
    image_folder(folder / "data", tasks=("art", "photo"), n=4)
    save_clip(folder / "model")


def open_all(folder, device, double):
    "The model and the tasks"
    clip = load_clip(str(folder / "model"))
    if double: clip.model.double()
    return clip.to(device), load_image_folder(folder / "data", shots=2)


def fitted(name, clip, tasks, epochs=1, checkpoint=None):
    cls = METHODS[name]
    given = SMALL | dict(config=TrainConfig(lr=0.01, epochs=epochs, batch_size=4, seed=3))
    method = cls(**{k: v for k, v in given.items() if k in method_options(cls)})
    return method.fit(clip, tasks, FeatureStore(None), checkpoint, progress=False)


def probs(made, tasks):
    return torch.cat([made.predict(t.name, t.test.images).probs.cpu().double() for t in tasks])


def fit_on(folder, name, device, double):
    "Probabilities of a method: fitted there; saved and taken up there; taken up on the CPU"
    clip, tasks = open_all(folder, device, double)
    made = fitted(name, clip, tasks)
    made.evaluate(tasks)
    file = made.save(folder / f"{name}-{device}.safetensors")
    here, again = probs(made, tasks), probs(load_fitted(file, clip, tasks), tasks)
    clip, tasks = open_all(folder, "cpu", double)
    return here, again, probs(load_fitted(file, clip, tasks), tasks)


def interrupted(folder, name, device):
    "The largest difference that an interruption in the second epoch makes"
    clip, tasks = open_all(folder, device, True)
    whole, checkpoint = fitted(name, clip, tasks, epochs=2), folder / f"{name}-{device}"
    with contextlib.ExitStack() as stack:
        for trainer in (PromptTrainer, ParameterTrainer, BilevelTrainer):
            step = trainer.train_step
            def until_then(self, *args, step=step, **kwargs):
                if self.step == self.plan.steps + 1: raise KeyboardInterrupt
                return step(self, *args, **kwargs)
            stack.enter_context(mock.patch.object(trainer, "train_step", until_then))
        with pytest.raises(KeyboardInterrupt):
            fitted(name, clip, tasks, 2, checkpoint)
    out = fitted(name, clip, tasks, 2, checkpoint)
    return (probs(whole, tasks) - probs(out, tasks)).abs().max().item()


def compare(folder, name, device="cuda", within=contextlib.nullcontext):
    "What one method does on a device, as differences of its probabilities; an error as its traceback"
    said = {}
    try:
        cpu = fit_on(folder, name, "cpu", True)[0]
        for what, double in (("double", True), ("usual", False)):
            with within(): here, again, elsewhere = fit_on(folder, name, device, double)
            said[what] = dict(
                zip(("trained", "reloaded", "moved"),
                    (x.abs().max().item() for x in (here - cpu, again - here, elsewhere - here))),
                sums=here.sum().item() / len(here))
        if name in STOPPED:
            with within(): said["interrupted"] = interrupted(folder, name, device)
    except Exception: said["error"] = traceback.format_exc()
    return said


def answers(folder, name, trainer, step):
    """How many answers a step wants of the GPU: the least of two epochs, since an epoch's end wants one more.
    (Small tables that go up wait, too, for what was queued before.)"""
    seen, take = [], getattr(trainer, step)
    def counted(self, *args, **kwargs):
        before = StandIn.counts["answers"]
        out = take(self, *args, **kwargs)
        seen.append(StandIn.counts["answers"] - before)
        return out
    with StandIn(), mock.patch.object(trainer, step, counted):
        clip, tasks = open_all(folder, "cuda", False)
        fitted(name, clip, tasks, epochs=2)
    return min(seen)


def commands(folder):
    """Status and words of `hipro_fit` on the device that it finds by itself, of taking it up again, and of
    `hipro_predict`"""
    out, fit = {}, [folder / "data", "--model", folder / "model", "--shots", 2, "--n-ctx", 2, "--epochs", 2,
                    "--seeds", 1, "--out", folder / "runs", "--name", "a"]
    image = folder / "data" / "art" / "plum" / "0.png"
    for what, f, argv in (("fit", hipro_fit, fit), ("resume", hipro_fit, [*fit, "--resume"]),
                          ("predict", hipro_predict, [folder / "runs" / "a", image])):
        said, status = io.StringIO(), 0
        with StandIn(), contextlib.redirect_stdout(said):
            try: f([str(a) for a in argv])
            except SystemExit as e: status = e.code
        out[what] = [status, said.getvalue()]
    return out


def refused():
    "What the stand-in says to what CUDA refuses"
    here, said = torch.ones(2, 2), {}
    with StandIn():
        there = here.cuda()
        for what, f in (("sum", lambda: there + here), ("index", lambda: here[there.long()]),
                        ("draw", lambda: torch.randn(2, device="cuda", generator=torch.Generator())),
                        ("numpy", there.numpy)):
            try: said[what] = repr(f())
            except (RuntimeError, TypeError) as e: said[what] = type(e).__name__
        said["fine"] = (there[torch.tensor([0])] + torch.tensor(1.0)).tolist()
    return said


def old_card(folder):
    clip = load_clip(str(folder / "model"))
    for capability in ((7, 5), (8, 0)):
        with StandIn(capability): yield str(clip.to("cuda").precision)
        clip.to("cpu")


def walk(folder):
    "In a process of its own: PyTorch cannot forget a backend"
    register()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = Path(folder)
    said = {name: compare(folder, name, within=StandIn) for name in METHODS}
    counted = (("hipro", PromptTrainer, "train_step"), ("cocoop", ParameterTrainer, "train_step"),
               ("jscpt", BilevelTrainer, "lower"))
    rest = dict(answers=lambda: {name: answers(folder, name, *where) for name, *where in counted},
                refused=refused, commands=lambda: commands(folder), old=lambda: list(old_card(folder)))
    for what, f in rest.items():
        try:said[what] = f()
        except Exception: said[what] = traceback.format_exc()
    (folder / "said.json").write_text(json.dumps(said), encoding="utf-8")


@pytest.fixture(scope="session")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device")
    prepare(folder)
    status, out = Forked(
        "test_device:walk", str(folder), cwd=folder, sys_path=[ROOT, ROOT / "tests"], both=True).wait(600)[:2]
    assert status == 0, out[-4000:]
    return json.loads((folder / "said.json").read_text(encoding="utf-8"))


def check(found, name):
    """Trained in float64 the two agree to rounding; in the types that are usual there, bf16 is seen (fp32 is
    nearer, a head of features hardly moves) and does no harm"""
    assert "error" not in found, found["error"]
    assert found["double"]["trained"] < 1e-9
    still = METHODS[name].family == "head" or name == "linear_probe"
    assert (5e-6 if still else 1e-3) < found["usual"]["trained"] < 0.25
    for kind, small in (("double", 1e-9), ("usual", 0.02)):
        assert (
            found[kind]["reloaded"] <= 1e-6
            and found[kind]["moved"] < small
            and abs(found[kind]["sums"] - 1) < 1e-5)
    assert found.get("interrupted", 0) < 1e-9


@needs_stand_in
@pytest.mark.parametrize("name", METHODS)
def test_method(said, name): check(said[name], name)


@needs_stand_in
def test_stand_in_refuses(said):
    assert said["refused"] == dict(
        sum="OtherDevice", index="OtherDevice", draw="OtherDevice", numpy="TypeError", fine=[[2.0, 2.0]])


@needs_stand_in
def test_commands(said):
    assert isinstance(said["commands"], dict), said["commands"]
    words = {k: text for k, (status, text) in said["commands"].items() if status == 0}
    assert set(words) == {"fit", "resume", "predict"}, said["commands"]
    assert (
        "on cuda:0" in words["fit"]
        and "HiPro" in words["fit"]
        and "finished before" in words["resume"]
        and "plum" in words["predict"])


@needs_stand_in
def test_answers(said): assert said["answers"] == dict(hipro=1, cocoop=1, jscpt=1)


@needs_stand_in
def test_bf16_where_there_are_units_for_it(said): assert said["old"] == ["torch.float32", "torch.bfloat16"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_method_on_a_gpu(tmp_path, name):
    prepare(tmp_path)
    check(compare(tmp_path, name), name)
