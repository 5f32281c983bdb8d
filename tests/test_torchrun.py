"""`torchrun` with two processes gives what one process gives. Slow: three Pythons import torch. The chapter
on training shows the same with forked processes."""

import os
import sys

import pytest
import torch
from project import ROOT, run

from hipro_nb.files import load_tensors

JOB = """
import os, sys
import open_clip, torch, torch.distributed as dist
from tiny import random_clip
from hipro_nb.files import save_tensors
from hipro_nb.hipro import HiPro
from hipro_nb.frozen import FrozenCLIP
from hipro_nb.tasks import Features, Task
from hipro_nb.train import TrainConfig

out, rank, g = sys.argv[1], os.environ.get("RANK"), torch.Generator().manual_seed(0)
if rank: dist.init_process_group("gloo")
y, tasks = torch.arange(3).repeat(4), []
for name in "abcd":
    x = torch.randn(12, 32, generator=g, dtype=torch.float64)
    part = Features(torch.nn.functional.normalize(x, dim=1), y)
    tasks.append(Task(name, ("apple", "plum", "fig"), part, part))
clip = FrozenCLIP(random_clip().double(), open_clip.get_tokenizer("RN50"), None, "tiny")
method = HiPro(n_ctx=4, n_shared=3, config=TrainConfig(lr=0.01, epochs=3))
fitted = method.fit(clip, tasks, checkpoint=f"{out}/checkpoint", progress=False)
save_tensors(f"{out}/{rank or 'alone'}.safetensors", dict(ctx=fitted.ctx, affinity=fitted.affinity),
             dict(groups=[list(m) for m in fitted.tree.groups]))
if rank: dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    (tmp_path / "job.py").write_text(JOB, encoding="utf-8")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]):
        status, out = run(
            sys.executable, *launcher, tmp_path / "job.py", tmp_path, cwd=tmp_path, PYTHONPATH=path)
        assert status == 0, out[-4000:]
    (alone, facts), *both = (load_tensors(tmp_path / f"{n}.safetensors") for n in ("alone", 0, 1))
    for got, same in both:
        assert same["groups"] == facts["groups"]
        for k in alone: torch.testing.assert_close(got[k], alone[k], rtol=1e-9, atol=1e-12)
