"Small things that the tests are made of: folders of coloured squares and a CLIP of random weights."
import json

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from PIL import Image

vision = dict(layers=2, width=48, head_width=16, patch_size=8, image_size=32)
text = dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=2)


def random_clip(seed=0):
    torch.manual_seed(seed)
    return CLIP(embed_dim=32, vision_cfg=CLIPVisionCfg(**vision), text_cfg=CLIPTextCfg(**text)).eval()


def save_clip(folder, seed=0):
    "A model folder as `hipro_fit --model FOLDER` takes it."
    folder.mkdir(parents=True, exist_ok=True)
    cfg = dict(model_cfg=dict(embed_dim=32, vision_cfg=vision, text_cfg=text),
               preprocess_cfg=dict(mean=[0.5] * 3, std=[0.5] * 3))
    (folder / "open_clip_config.json").write_text(json.dumps(cfg), encoding="utf-8")
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in random_clip(seed).state_dict().items()},
              folder / "open_clip_model.safetensors")
    return folder


def square(seed, size=(24, 20), mode="RGB"):
    "A noisy picture, the same for the same seed."
    a = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(a).convert(mode)


def coloured(hue, seed, size=(24, 20)):
    """A picture of one colour with a little noise: classes that a linear head on random features can tell
    apart."""
    rng = np.random.default_rng(seed)
    base = np.array([[230, 40, 40], [40, 220, 60], [50, 60, 230], [220, 210, 60]][hue % 4])
    a = (base + rng.normal(0, 25, (size[1], size[0], 3))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(a)


def image_folder(root, tasks=("art", "clip art", "photo"), classes=("apple", "red pear", "plum"), n=5):
    "`root/<task>/<class>/<i>.png`"
    for t, task in enumerate(tasks):
        for c, name in enumerate(classes):
            d = root / task / name
            d.mkdir(parents=True, exist_ok=True)
            for i in range(n):
                coloured(c, 1000 * t + 100 * c + i).save(d / f"{i}.png")
    return root


def hold_for_ever(folder):
    "A command at work in a run's folder, until it is killed."
    import time
    from pathlib import Path

    from hipro_nb.cli import hold

    with hold(Path(folder)): time.sleep(3600)


def fit_alone(argv):
    "`hipro_fit` on one thread."
    from hipro_nb.cli import hipro_fit

    torch.set_num_threads(1)
    return hipro_fit(argv)
