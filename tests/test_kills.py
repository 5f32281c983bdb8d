"A run that is stopped at any moment, again and again, ends with the bytes of one that was never stopped."

import contextlib
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import tqdm
from forked import Forked
from project import ROOT
from tiny import image_folder, save_clip

import hipro_nb.baselines.coop
import hipro_nb.schedule
import hipro_nb.processes
from hipro_nb.baselines import METHODS, method_options
from hipro_nb.cli import hipro_fit
from hipro_nb.zoo import load_clip
from hipro_nb.compare import hipro_compare
from hipro_nb.tasks import Features, Task
from hipro_nb.folders import load_image_folder
from hipro_nb.files import load_tensors
from hipro_nb.train import TrainConfig

pytestmark = [
    pytest.mark.xdist_group("kills"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process for each of its lives")]
SMALL = dict(n_ctx=2, n_shared=2, n_visual=2)
EPOCHS = dict(hipro=8, jscpt=15, proda=20, clip_adapter=20, cocoop=20)


def keep_every_step():
    "Commands have no option for it, and so few steps that they would keep none but the first and the last."
    for module in (hipro_nb.processes, hipro_nb.baselines.coop, hipro_nb.schedule):
        module.run_loop = every_step(module.run_loop)


def every_step(run):
    def often(trainable, file=None, every=200, *args): return run(trainable, file, 1, *args)
    return often


def features(names=("apple", "plum"), n=3):
    "Two tasks for a method that needs no pictures: to encode some would start threads."
    g = torch.Generator().manual_seed(0)
    for task in ("art", "photo"):
        y = torch.arange(len(names)).repeat(n)
        x = torch.nn.functional.normalize(torch.randn(len(y), 32, generator=g, dtype=torch.float64), dim=1)
        yield Task(task, names, Features(x, y), Features(x, y))


class Fit:
    "Fits a method on two tiny tasks, in float64, and saves it."
    def __init__(self, home, name):
        self.name, self.clip = name, load_clip(str(home / "model"))
        self.clip.model.double()
        self.tasks = load_image_folder(home / "data", shots=2) if name == "jscpt" else list(features())

    def __call__(self, folder):
        config = TrainConfig(lr=0.01, epochs=EPOCHS[self.name], batch_size=2, seed=3)
        given = {
            k: v for k, v in (SMALL | dict(config=config)).items() if k in method_options(METHODS[self.name])}
        method = METHODS[self.name](**given)
        fitted = method.fit(self.clip, self.tasks, checkpoint=folder / "checkpoint", progress=False)
        fitted.save(folder / "model.safetensors")


class Command:
    "A command with small settings."
    def __init__(self, home, command, *argv):
        self.command = command
        self.argv = [home / "data", "--model", home / "model", "--n-ctx", 2, "--shots", 2, "--seeds", 1,
                     *argv]

    def __call__(self, folder):
        return self.command([str(a) for a in (*self.argv, "--out", folder / "runs")])


class Life:
    "A process that does a job in a folder. The one that begins it must have no other thread."
    def __init__(self, job, folder):
        assert threading.active_count() == 1
        self.folder, self.status = folder, None
        self.pid = os.fork()
        if not self.pid: self.live(job)

    def live(self, job):
        "The child's side."
        status = 1
        try: status = job(self.folder) or 0
        except KeyboardInterrupt: status = 130
        except BaseException: traceback.print_exc()
        finally:
            for s in (sys.stdout, sys.stderr): s.flush()
            os._exit(status)

    def ended(self, options=os.WNOHANG):
        "Exit status, negative for a signal; None while it runs."
        if self.status is None:
            pid, status = os.waitpid(self.pid, options)
            if pid: self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def checkpoint(self):
        "When the last one was written."
        seen = [0]
        for f in self.folder.rglob("checkpoint/*.safetensors"):
            with contextlib.suppress(OSError): seen.append(f.stat().st_mtime_ns)
        return max(seen)

    def stop(self, number, rng, seconds):
        """Send a signal: once in four times at any time from the start on, else after one to three
        checkpoints and a part of a step. The exit status, which is 0 where that was too late."""
        left, last = rng.choice((0, 1, 2, 3)), self.checkpoint()
        while left and self.ended() is None:
            time.sleep(0.0005)
            now = self.checkpoint()
            left, last = left - (now != last), now
        time.sleep(rng.random() * seconds)
        if self.ended() is None: os.kill(self.pid, number)
        return self.ended(0)


def end(folder):
    "The files that are left, by name."
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("model.safetensors"))}


def kept(folder):
    "The last step that is kept of each run; every file is whole, whenever the process was killed."
    steps = {}
    for f in folder.rglob("checkpoint/*.safetensors"):
        run = f.with_name(f.name.replace(".before", ""))
        if ".next" not in f.name: steps[run] = max(load_tensors(f)[1]["step"], steps.get(run, 0))
    return steps


class Lives:
    "A job that is stopped again and again."
    def __init__(self, job, home):
        self.job, self.home, began = job, home, time.monotonic()
        assert Life(job, home / "whole").ended(0) == 0
        self.whole, self.step = end(home / "whole"), (time.monotonic() - began) / 50
        assert self.whole

    def stopped(self, number, times):
        """Exit statuses of lives that are stopped, and of some that come to their end; all end with the same
        bytes."""
        rng, seen, folders = random.Random(times), [], [self.home / f"{number} 0"]
        while len([s for s in seen if s]) < times:
            before = kept(folders[-1])
            seen.append(Life(self.job, folders[-1]).stop(number, rng, self.step))
            now = kept(folders[-1])
            there = [run for run in before if not (run.parent.parent / "model.safetensors").exists()]
            assert all(now.get(run, -1) >= before[run] for run in there), "steps that were kept are lost"
            if seen[-1] == 0: folders.append(self.home / f"{number} {len(folders)}")
        assert Life(self.job, folders[-1]).ended(0) == 0
        for folder in folders: assert end(folder) == self.whole, f"{folder}: not the same bytes"
        return seen


def job_of(home, name):
    "A method's fit, or a command."
    if name in METHODS: return Fit(home, name)
    if name == "hipro_fit":
        return Command(home, hipro_fit, "--method", "shr_ind", "--epochs", 8, "--name", "run", "--resume")
    methods = "zero_shot,hipro,proda,clip_adapter,linear_probe,jscpt"
    return Command(home, hipro_compare, "--methods", methods, "--epochs", 4, "--jobs", 0)


def walk(home, name, *stops):
    "In a process of its own, which forks the lives: so many stops by each signal."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    keep_every_step()
    tqdm.tqdm.monitor_interval = 0  # no thread of its own
    os.fsync = int  # what a killed process has written is not lost; that is for a machine without power
    told = Lives(job_of(home, name), home / name)
    for number, times in stops:
        seen = told.stopped(number, times)
        print(name, number, seen)
        # before and after the loop SIGTERM ends a process as usual
        usual = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {130, -signal.SIGTERM},
                 signal.SIGINT: {130}}
        assert set(seen) - {0} <= usual[number]
        assert number == signal.SIGKILL or 130 in seen


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("kills")
    image_folder(home / "data", tasks=("art", "photo"), classes=("apple", "plum"), n=4)
    save_clip(home / "model")
    return home


def walked(home, *args):
    p = Forked("test_kills:walk", home, *args, sys_path=[ROOT, ROOT / "tests"], both=True)
    status, out, _ = p.wait(580)
    assert status == 0, out[-5000:]
    print(out, f"{p.cpu_seconds:.1f} s")


def test_killed_twenty_times(home):
    walked(home, "hipro", (signal.SIGKILL, 20), (signal.SIGTERM, 4), (signal.SIGINT, 2))


def test_a_command_is_told_to_end(home):
    walked(home, "hipro_fit", (signal.SIGTERM, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hipro", "jscpt", "proda", "clip_adapter", "cocoop", "hipro_compare"])
def test_killed_two_hundred_times(home, name):
    "In all six together."
    walked(home, name, (signal.SIGKILL, 34))
