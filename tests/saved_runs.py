"""Small fits of every method, whose classifiers and predictions are kept in `tests/saved`: what the methods
give does not change when the code around them does. `python tests/saved_runs.py` writes them anew, which a
change of numbers needs."""
import warnings
from pathlib import Path

import numpy as np
import open_clip
import torch
from tiny import coloured, random_clip

from hipro_nb.baselines import METHODS, method_options
from hipro_nb.prompt import FrozenCLIP
from hipro_nb.images import Split
from hipro_nb.tasks import Task
from hipro_nb.files import save_tensors
from hipro_nb.train import TrainConfig

HERE = Path(__file__).parent / "saved"
KEPT = ("hipro", "linear_probe", "clip_adapter")  # whose files are kept whole
CONFIG = TrainConfig(lr=0.01, epochs=2, batch_size=6, seed=0)
SMALL = dict(n_ctx=2, n_shared=2, n_tokens=2, n_visual=2, config=CONFIG)
CLASSES = ("apple", "red pear", "plum")


def pixels(picture):
    "A picture of 32 by 32 as the model takes it, in float64"
    return torch.tensor(np.asarray(picture.convert("RGB")), dtype=torch.float64).permute(2, 0, 1) / 127.5 - 1


def numbered_clip(seed=0):
    "Two layers, 32 wide, float64; its weights come from NumPy's generator, the same on every machine"
    model, rng = random_clip().double(), np.random.default_rng(seed)
    for name, p in model.named_parameters():
        if name == "logit_scale": value = np.log(20.0)
        elif name.endswith("bias"): value = 0.0
        elif "ln_" in name: value = 1.0
        elif "embedding" in name: value = rng.uniform(-0.3, 0.3, tuple(p.shape))
        else: value = rng.uniform(-0.25, 0.25, tuple(p.shape))
        p.data.copy_(torch.as_tensor(value))
    return FrozenCLIP(model, open_clip.get_tokenizer("RN50"), pixels, "numbered", key=f"numbered-{seed}")


def tasks():
    "Three tasks of coloured pictures, two of a class to learn from and two to be tested on"
    def part(task, first):
        each = [(c, i) for c in range(3) for i in (0, 1)]
        images = [coloured(c + task, 1000 * task + 100 * c + first + i, (32, 32)) for c, i in each]
        return Split(images, [c for c, _ in each])
    names = ("art", "clip art", "photo")
    return [Task(name, CLASSES, part(t, 0), part(t, 10)) for t, name in enumerate(names)]


def fitted(name, clip, given):
    "A small fit of one method, the warnings of small fits aside"
    takes = method_options(METHODS[name])
    options = {k: v for k, v in SMALL.items() if k in takes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return METHODS[name](**options).fit(clip, given, progress=False)


def numbers(name, method, given):
    "Classifiers, temperatures and one prediction a task, by name"
    found = {f"{name}.head.{i}": h for i, h in enumerate(method.heads) if h is not None}
    found[f"{name}.scales"] = torch.tensor(method.scales, dtype=torch.float64)
    for i, t in enumerate(given): found[f"{name}.probs.{i}"] = method.predict(t.name, t.test.images).probs
    return found


def draws():
    "What this processor makes of PyTorch's generator: the last digit of fp32 may be another elsewhere"
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    torch.set_num_threads(1)
    clip, given, found = numbered_clip(), tasks(), dict(draws=draws())
    for name in METHODS:
        method = fitted(name, clip, given)
        found |= numbers(name, method, given)
        if name in KEPT: method.save(HERE / f"{name}.safetensors", dict(version="0.1.0"))
    save_tensors(HERE / "runs.safetensors", found, dict(kind="saved runs"))
    kinds = {t.dtype for t in found.values()}
    print(f"{len(found)} tensors of {len(METHODS)} methods, {kinds}")
