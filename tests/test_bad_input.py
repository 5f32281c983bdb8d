"Bad input: every error names the culprit, says what was expected, comes before training and loses nothing."

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import image_folder, random_clip, save_clip, square

from hipro_nb.tasks import BadData, Features, Task, few_shot
from hipro_nb.store import FeatureStore
from hipro_nb.frozen import FrozenCLIP
from hipro_nb.images import Split
from hipro_nb.folders import load_image_folder
from hipro_nb.files import load_tensors, save_tensors, write_atomic

def preprocess(im):
    a = np.asarray(im.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return torch.from_numpy(a).permute(2, 0, 1) * 2 - 1


@pytest.fixture(scope="module")
def clip():
    import open_clip

    return FrozenCLIP(random_clip(), open_clip.get_tokenizer("RN50"), preprocess, "tiny")


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "data")


def refused(*parts):
    "The error must be a BadData that contains every part."

    class Check:
        def __enter__(self):
            return self

        def __exit__(self, kind, error, trace):
            assert kind is not None, f"nothing was refused; expected {parts}"
            if not issubclass(kind, BadData):
                return False
            for p in parts:
                assert str(p) in str(error), f"{p!r} is not in {error}"
            assert "\n" not in str(error) or "unreadable" in str(error)
            return True

    return Check()


# ---------------------------------------------------------------- folders


def test_empty_folder(tmp_path):
    with refused("no task folders", tmp_path.name, "expected PATH/<task>/<class>"):
        load_image_folder(tmp_path, shots=1)


def test_missing_folder(tmp_path):
    with refused("nowhere", "expected"):
        load_image_folder(tmp_path / "nowhere", shots=1)


def test_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "zip").write_text("x", encoding="utf-8")
    with refused("zip", "expected"):
        load_image_folder(tmp_path / "zip", shots=1)


def test_class_without_images(folder):
    (folder / "photo" / "fig").mkdir()
    with refused("'photo'", "'fig'", "no images", "expected at least 1"):
        load_image_folder(folder, shots=1)


def test_fewer_images_than_shots(folder):
    for i in range(1, 5):
        (folder / "art" / "plum" / f"{i}.png").unlink()
    with refused("'art'", "'plum'", "1 images", "expected at least 4", "3 shots"):
        load_image_folder(folder, shots=3)


def test_shots_below_one(folder):
    with refused("shots=0", "expected at least 1"):
        few_shot(torch.zeros(4, dtype=torch.long), 0)


def test_fraction_out_of_range(folder):
    with refused("fraction=10", "10 percent is 0.1"):
        load_image_folder(folder, fraction=10)


def test_shots_and_fraction_together(folder):
    with refused("fraction=0.1", "shots=2", "one of the two"):
        load_image_folder(folder, fraction=0.1, shots=2)


def test_neither_shots_nor_fraction_nor_list(folder):
    with refused("'art'", "shots", "fraction"):
        load_image_folder(folder)


def test_name_in_train_but_not_in_test(tmp_path):
    for part, names in dict(train=("apple", "plum"), test=("apple",)).items():
        for c in names:
            d = tmp_path / "art" / part / c
            d.mkdir(parents=True)
            square(1).save(d / "0.png")
    with refused("'art'", "'plum'", "in train and not in test"):
        load_image_folder(tmp_path)


def test_train_list_leaves_nothing_to_test(folder):
    lists = {t: [f"{c}/0.png" for c in ("apple", "red pear", "plum")] for t in ("art", "clip art", "photo")}
    lists["photo"] = [f"plum/{i}.png" for i in range(5)]
    with refused("'photo'", "'plum'", "in train and not in test"):
        load_image_folder(folder, train_list=lists)


def test_train_list_names_a_file_that_is_not_there(folder):
    lists = {t: [f"{c}/0.png" for c in ("apple", "red pear", "plum")] for t in ("art", "clip art", "photo")}
    lists["art"].append("plum/99.png")
    with refused("'art'", "'plum/99.png'", "are not there"):
        load_image_folder(folder, train_list=lists)


def test_train_list_of_other_tasks(folder, tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(dict(art=[], photo=[], music=[])), encoding="utf-8")
    with refused("'clip art'", "only", "the same tasks"):
        load_image_folder(folder, train_list=tmp_path / "list.json")


def test_train_list_is_not_json(folder, tmp_path):
    (tmp_path / "list.json").write_text("{", encoding="utf-8")
    with refused("list.json", "expected JSON"):
        load_image_folder(folder, train_list=tmp_path / "list.json")


def test_train_list_without_the_percentage(folder):
    with refused("5, 10", "fraction=0.2", "expected"):
        load_image_folder(folder, train_list={"5": {}, "10": {}}, fraction=0.2)


# ---------------------------------------------------------------- names


def test_duplicate_class_names(tmp_path):
    for c in ("red pear", "Red_Pear"):
        (tmp_path / "art" / c).mkdir(parents=True)
        square(0).save(tmp_path / "art" / c / "0.png")
    with refused("'art'", "'Red_Pear'", "'red pear'", "duplicate"):
        load_image_folder(tmp_path, shots=1)


def test_duplicate_names_in_a_task():
    s = Split([square(0), square(1)], [0, 1])
    with refused("'art'", "'a'", "duplicate"):
        Task("art", ("a", "a"), s, s)


def test_duplicate_task_names(clip):
    from hipro_nb.method import ZeroShot

    s = Split([square(0), square(1)], [0, 1])
    with refused("'art'", "duplicate"):
        ZeroShot().fit(clip, [Task("art", ("a", "b"), s, s)] * 2)


def test_empty_name():
    s = Split([square(0)], [0])
    with refused("'_'", "expected a text"):
        Task("art", ("_",), s, s)


def test_no_tasks(clip):
    from hipro_nb.hipro import HiPro

    with refused("no tasks", "at least 1"):
        HiPro().fit(clip, [])


NAMES = ["red pear", "red_apple", "Äpfel", "リンゴ", "X", "a" * 1000, "O'Neil's \"fruit\" <b>", "100% {}"]


def test_odd_names_keep_and_encode(clip):
    """Spaces, underscores, unicode, quotes, braces and a class called X go through; a thousand characters do
    not fit a prompt."""
    from hipro_nb.hipro import HiPro
    from hipro_nb.method import ZeroShot
    from hipro_nb.train import TrainConfig

    names = tuple(n for n in NAMES if len(n) < 100)
    s = Split([square(i) for i in range(len(names))], range(len(names)))
    task = Task("Größe & <b>", names, s, s)
    zero = ZeroShot().fit(clip, [task])
    assert zero.weights("Größe & <b>").shape == (len(names), 32)
    assert "<b>" not in zero.evaluate([task])._repr_html_().replace("&lt;b&gt;", "")
    other = Task("x", ("X",), s.subset([0, 1]).__class__([square(0)], [0]), Split([square(0)], [0]))
    h = HiPro(n_ctx=4, n_shared=2, config=TrainConfig(epochs=1)).fit(clip, [task, other], progress=False)
    assert h.weights("x").shape == (1, 32) and h.predict("x", [square(3)]).names == ["X"]
    assert h.predict(0, [square(3)]).names[0] in names


def test_a_thousand_characters_do_not_fit(clip):
    from hipro_nb.hipro import HiPro

    long = " ".join(["pomegranate"] * 90)
    s = Split([square(0), square(1)], [0, 1])
    with refused("pomegranate", "77"):
        HiPro().fit(clip, [Task("art", ("a", long), s, s)])


def test_prompt_too_long_for_the_context(clip):
    from hipro_nb.hipro import HiPro

    s = Split([square(0), square(1)], [0, 1])
    with refused("class 'a'", "75 context tokens", "77"):
        HiPro(n_ctx=75).fit(clip, [Task("art", ("a", "red pear"), s, s)])


# ---------------------------------------------------------------- images


def test_truncated_and_unreadable_images_are_listed(folder):
    p, q = folder / "art" / "plum" / "1.png", folder / "photo" / "apple" / "2.png"
    p.write_bytes(p.read_bytes()[:200])
    q.write_text("not an image", encoding="utf-8")
    with refused("2 unreadable images", "art/plum/1.png", "photo/apple/2.png", "skip_bad_images"):
        load_image_folder(folder, shots=1)


def test_unreadable_images_are_skipped_when_asked(folder):
    (folder / "art" / "plum" / "1.png").write_text("not an image", encoding="utf-8")
    with pytest.warns(UserWarning, match="skipped 1 unreadable images: art/plum/1.png"):
        tasks = load_image_folder(folder, shots=2, skip_bad_images=True)
    assert len(tasks[0].train) + len(tasks[0].test) == 14


@pytest.mark.filterwarnings("ignore:skipped 5 unreadable images")
def test_a_class_of_unreadable_images_only(folder):
    for p in (folder / "art" / "plum").iterdir():
        p.write_bytes(b"")
    with refused("'art'", "'plum'", "expected at least 1"):
        load_image_folder(folder, shots=1, skip_bad_images=True)


@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16", "CMYK", "L", "1", "LA"])
def test_image_modes(clip, tmp_path, mode):
    im = (
        Image.fromarray(np.arange(24 * 20, dtype=np.uint16).reshape(20, 24) * 130)
        if mode == "I;16"
        else square(5, mode="L" if mode == "LA" else mode if mode != "1" else "1"))
    p = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    im.convert("LA").save(p) if mode == "LA" else im.save(p)
    x = FeatureStore(None).features(clip, [p], progress=False)
    assert x.shape == (1, 32) and x.isfinite().all() and abs(float(x.norm()) - 1) < 1e-5


def test_one_pixel_wide(clip, tmp_path):
    square(1, size=(1, 300)).save(tmp_path / "a.png")
    square(1, size=(1, 1)).save(tmp_path / "b.png")
    assert (
        FeatureStore(None)
        .features(clip, [tmp_path / "a.png", tmp_path / "b.png"], progress=False)
        .isfinite()
        .all())


def test_hidden_files_and_folders_are_left_out(folder):
    (folder / ".git").mkdir()
    (folder / "art" / ".cache").mkdir()
    (folder / "art" / "plum" / ".DS_Store").write_text("x", encoding="utf-8")
    (folder / "art" / "plum" / "Thumbs.db").write_text("x", encoding="utf-8")
    (folder / "__MACOSX").mkdir()
    tasks = load_image_folder(folder, shots=2)
    assert [t.name for t in tasks] == ["art", "clip art", "photo"] and len(tasks[0].train) + len(
        tasks[0].test) == 15


def test_symbolic_links(folder, tmp_path):
    (folder / "linked").symlink_to(folder / "art", target_is_directory=True)
    (folder / "art" / "plum" / "link.png").symlink_to(folder / "photo" / "plum" / "0.png")
    tasks = load_image_folder(folder, shots=2)
    assert [t.name for t in tasks] == ["art", "clip art", "linked", "photo"] and len(tasks[0].train) + len(
        tasks[0].test) == 16


def test_a_broken_link_is_listed(folder):
    (folder / "art" / "plum" / "gone.png").symlink_to(folder / "nowhere.png")
    with refused("art/plum/gone.png"):
        load_image_folder(folder, shots=1)


def test_a_link_to_its_own_parent_does_not_loop(folder):
    (folder / "art" / "up").symlink_to(folder, target_is_directory=True)
    tasks = load_image_folder(folder, shots=1)
    assert "up" not in tasks[0].classnames


# ---------------------------------------------------------------- labels, features, losses


def test_label_out_of_range():
    s = Split([square(0), square(1)], [0, 1])
    with refused("'art'", "label 2", "position 1", "expected 0 to 1"):
        Task("art", ("a", "b"), Split([square(0), square(1)], [0, 2]), s)


def test_features_not_finite():
    x = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    bad = x.clone()
    bad[1, 2] = float("nan")
    good = Features(x, [0, 1, 0])
    with refused("'art'", "train", "position 1", "'b'", "not finite"):
        Task("art", ("a", "b"), Features(bad, [0, 1, 0]), good)


def test_weights_that_give_no_finite_features():
    import open_clip

    broken = random_clip()
    with torch.no_grad():
        broken.visual.conv1.weight.fill_(float("inf"))
    frozen = FrozenCLIP(broken, open_clip.get_tokenizer("RN50"), preprocess, "broken")
    with refused("broken", "not finite"):
        FeatureStore(None).features(frozen, [square(0)], progress=False)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(clip, tmp_path, monkeypatch):
    from hipro_nb.hipro import HiPro
    from hipro_nb.train import NonFiniteLoss, PromptTrainer, TrainConfig

    tasks, config = feature_tasks(), TrainConfig(epochs=8, batch_size=4, checkpoint_every=5)
    method = HiPro(n_ctx=4, n_shared=2, config=config)
    whole = method.fit(clip, tasks, progress=False)
    losses, calls = PromptTrainer.losses, iter(range(10**6))
    monkeypatch.setattr(PromptTrainer, "losses",
                        lambda self, *a: losses(self, *a) * (float("nan") if next(calls) == 23 else 1))
    with pytest.raises(
        NonFiniteLoss, match=r"step \d+: the loss of node 0 .*'a'.* is not finite; stopped before the step"):
        method.fit(clip, tasks, checkpoint=tmp_path, progress=False)
    assert list(tmp_path.iterdir())
    monkeypatch.undo()
    again = method.fit(clip, tasks, checkpoint=tmp_path, progress=False)
    assert torch.equal(again.ctx, whole.ctx) and torch.equal(again.weights(0), whole.weights(0))


# ---------------------------------------------------------------- files: checkpoints, methods, runs


def feature_tasks(names=("apple", "plum"), tasks=("a", "b"), n=8):
    g = torch.Generator().manual_seed(0)
    made = []
    for t in tasks:
        y = torch.arange(len(names)).repeat(n)
        x = torch.nn.functional.normalize(torch.randn(len(y), 32, generator=g), dim=1)
        made.append(Task(t, names, Features(x, y), Features(x, y)))
    return made


@pytest.fixture(scope="module")
def trained(clip, tmp_path_factory):
    "A fitted HiPro, its file and its checkpoint folder."
    from hipro_nb.hipro import HiPro
    from hipro_nb.train import TrainConfig

    home = tmp_path_factory.mktemp("trained")
    h = HiPro(n_ctx=4, n_shared=2, config=TrainConfig(epochs=2)).fit(
        clip, feature_tasks(), checkpoint=home / "ck", progress=False)
    return h, h.save(home / "h.safetensors"), home / "ck"


def refit(clip, folder, tasks=None, n_ctx=4, **kw):
    from hipro_nb.hipro import HiPro
    from hipro_nb.train import TrainConfig

    return HiPro(n_ctx=n_ctx, n_shared=2, config=TrainConfig(**{"epochs": 2, **kw})).fit(
        clip, tasks or feature_tasks(), checkpoint=folder, progress=False)


def test_checkpoint_of_other_tasks_names_or_sizes(clip, trained):
    _, _, folder = trained
    with refused("shared.safetensors", "another run", "'a', is 'z'"):
        refit(clip, folder, feature_tasks(tasks=("z", "b")))
    with refused("shared.safetensors", "another run", "plum", "fig"):
        refit(clip, folder, feature_tasks(names=("apple", "fig")))
    with refused("shared.safetensors", "another run", "n_ctx was 4, is 5"):
        refit(clip, folder, n_ctx=5)
    with refused("another run", "config.lr was 0.001, is 0.1"):
        refit(clip, folder, lr=0.1)
    with refused("another run", "images was 16, is 14"):
        refit(clip, folder, feature_tasks(n=7))


def test_damaged_checkpoint(clip, trained, tmp_path):
    "The one before it is used, and that is said; where both are damaged the run is refused."
    import shutil

    shutil.copytree(trained[2], tmp_path / "ck")
    last, before = (tmp_path / "ck" / f"nodes{word}.safetensors" for word in ("", ".before"))
    raw = bytearray(last.read_bytes())
    raw[-1] ^= 1
    last.write_bytes(raw)
    with pytest.warns(
        UserWarning,
        match=r"nodes\.safetensors is damaged.*\. Going on from the checkpoint before it, at step 0"):
        again = refit(clip, tmp_path / "ck")
    assert torch.equal(again.ctx, trained[0].ctx) and torch.equal(again.weights(0), trained[0].weights(0))
    for f in (last, before):
        f.write_bytes(raw[:100])
    with refused(
        "nodes.safetensors is damaged", "nodes.before.safetensors is damaged", "Remove both to start afresh"):
        refit(clip, tmp_path / "ck")


def test_saved_method_of_other_tasks_names_or_model(clip, trained):
    import open_clip

    from hipro_nb.method import load_fitted

    h, file, _ = trained
    with refused("h.safetensors", "was made for the tasks a, b", "not for b"):
        load_fitted(file, clip, feature_tasks(tasks=("b",)))
    with refused("h.safetensors", "'a'", "other classes", "apple, plum"):
        load_fitted(file, clip, feature_tasks(names=("apple", "fig")))
    with refused("h.safetensors", "was made with model tiny", "not with other"):
        load_fitted(file, FrozenCLIP(random_clip(1), open_clip.get_tokenizer("RN50"), preprocess, "other"))
    with refused("task 'a' has 3 classes", "fitted on 2", "'fig'"):
        h.evaluate(feature_tasks(names=("apple", "plum", "fig")))
    with refused("no task 'z'", "fitted on a, b"):
        h.evaluate(feature_tasks(tasks=("z",)))


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "text", "gone"])
def test_damaged_method_file(trained, tmp_path, harm):
    from hipro_nb.method import load_fitted

    raw, f = bytearray(trained[1].read_bytes()), tmp_path / "m.safetensors"
    raw[-5] ^= 8
    content = dict(
        flip=bytes(raw), cut=bytes(raw[: len(raw) // 2]), empty=b"", text=b"not a safetensors file at all")
    if harm != "gone":
        f.write_bytes(content[harm])
    with refused("m.safetensors", "cannot read" if harm == "gone" else "damaged"):
        load_fitted(f)


def test_a_file_without_a_method(tmp_path):
    from hipro_nb.method import load_fitted

    save_tensors(tmp_path / "x.safetensors", dict(a=torch.ones(1)))
    with refused("x.safetensors", "no trained method"):
        load_fitted(tmp_path / "x.safetensors")


def test_nothing_is_ever_unpickled(tmp_path):
    "A pickle in place of a file of ours is refused before anything in it runs."
    from hipro_nb.method import load_fitted

    torch.save(dict(a=torch.ones(1)), tmp_path / "x.safetensors")
    with refused("x.safetensors", "damaged"):
        load_fitted(tmp_path / "x.safetensors")


# ---------------------------------------------------------------- the disk


def test_full_disk_leaves_the_old_file(trained, tmp_path, monkeypatch):
    f = trained[0].save(tmp_path / "m.safetensors")
    before = f.read_bytes()
    real = os.fsync

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with refused("m.safetensors", "No space left", "Nothing there was changed"):
        trained[0].save(f)
    monkeypatch.setattr(os, "fsync", real)
    assert f.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_full_disk_in_the_command(tmp_path, monkeypatch, capfd):
    from hipro_nb.cli import hipro_fit

    argv = [str(image_folder(tmp_path / "data")), "--model", str(save_clip(tmp_path / "model")), "--shots",
            "1", "--seeds", "1", "--epochs", "1", "--n-ctx", "4", "--out", str(tmp_path / "runs")]

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        assert hipro_fit(argv) == 2
    err = capfd.readouterr().err
    assert err.startswith("hipro_fit: cannot write") and "No space left" in err and "Traceback" not in err
    assert hipro_fit(argv) == 0


def test_read_only_output_folder(tmp_path, capfd, monkeypatch):
    "Root may write anywhere: for it the system's refusal is put in by hand."
    import hipro_nb.files
    from hipro_nb.cli import hipro_fit

    argv = [str(image_folder(tmp_path / "data")), "--model", str(save_clip(tmp_path / "model")), "--shots",
            "1", "--seeds", "1", "--epochs", "1"]
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert hipro_fit([*argv, "--out", str(out)]) == 2
        err = capfd.readouterr().err
        assert "hipro_fit: " in err and str(tmp_path / "file") in err and "Not a directory" in err, err
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)

    def refuse(path, mode="r", *a, **k):
        if "r" not in mode and str(path).startswith(str(locked)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open(path, mode, *a, **k)

    if os.access(locked, os.W_OK):
        monkeypatch.setattr(hipro_nb.files, "open", refuse, raising=False)
    assert hipro_fit([*argv, "--out", str(locked)]) == 2
    err = capfd.readouterr().err
    assert err.startswith("hipro_fit: cannot ") and "Traceback" not in err
    assert (
        str(locked) in err and "Permission denied" in err and "expected a folder that can be written" in err)


def test_write_atomic_into_a_missing_place(tmp_path):
    (tmp_path / "f").write_text("x", encoding="utf-8")
    with refused("cannot write", "expected a folder that can be written"):
        write_atomic(tmp_path / "f" / "g", b"1")


def test_a_damaged_feature_store_is_filled_again(clip, tmp_path):
    images = [square(i) for i in range(3)]
    x = FeatureStore(tmp_path).features(clip, images, progress=False)
    for f in tmp_path.rglob("*.safetensors"):
        f.write_bytes(f.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="damaged"):
        y = FeatureStore(tmp_path).features(clip, images, progress=False)
    torch.testing.assert_close(x, y)


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "argv,parts",
    [
        (["{}/nowhere", "--shots", "1"], ["nowhere", "expected"]),
        (["{}/empty", "--shots", "1"], ["no task folders"]),
        (["{}/data"], ["'art'", "shots"]),
        (["{}/data", "--shots", "9"], ["'apple'", "5 images", "9 shots"]),
        (["{}/data", "--shots", "1", "--method", "mapel"], ["'mapel'", "zero_shot, coop"]),
        (["{}/data", "--shots", "1", "--seeds", "none"], ["--seeds none"]),
        (["{}/data", "--shots", "1", "--lr", "-1"], ["lr is -1"]),
        (["{}/data", "--shots", "1", "--epochs", "0"], ["epochs is 0"]),
        (["{}/data", "--shots", "1", "--n-ctx", "0"], ["n_ctx 0"]),
        (["{}/data", "--shots", "1", "--dtype", "float5"], ["float5", "dtype"]),
        (["{}/data", "--shots", "1", "--model", "{}/data"], ["open_clip_config.json"]),
        (["{}/data", "--shots", "1", "--model", "RN5000"], ["'RN5000'"]),
        (["{}/data", "--shots", "1", "--pretrained", "openai"], ["--model"]),
        (["{}/data", "--shots", "1", "--model", "RN50"], ["--pretrained", "random weights", "openai"]),
        (["{}/data", "--shots", "1", "--device", "gpu"], ["'gpu'", "cuda"]),
        (["{}/data", "--shots", "1", "--dtype", "int64"], ["int64", "floating-point"]),
        (["{}/data", "--shots", "1", "--train-list", "{}/none.json"], ["none.json", "expected JSON"]),
        (["mini-domains", "--fraction", "0.1"], ["mini-domains", "--shots"]),
    ],
)
def test_one_clear_line(tmp_path, capfd, monkeypatch, argv, parts):
    """Every refusal of the command is one line that begins with its name, exit status 2, and leaves no run
    behind."""
    from hipro_nb.cli import hipro_fit

    image_folder(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    model = (
        []
        if any(a in ("--model", "--pretrained", "mini-domains") for a in argv)
        else ["--model", str(save_clip(tmp_path / "model"))])
    assert hipro_fit([a.format(tmp_path) for a in argv] + model) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("hipro_fit: ") and err.count("\n") == 1, err
    for p in parts:
        assert p in err, err
    assert not list(tmp_path.glob("runs/*/seed*"))


def test_prompt_too_long_in_the_command_then_shorter(tmp_path, capfd):
    "A refused run leaves its name free."
    from hipro_nb.cli import hipro_fit

    argv = [str(image_folder(tmp_path / "data")), "--model", str(save_clip(tmp_path / "model")), "--shots",
            "1", "--seeds", "1", "--epochs", "1", "--out", str(tmp_path / "runs")]
    assert hipro_fit(argv + ["--n-ctx", "75"]) == 2
    assert "context" in capfd.readouterr().err
    assert hipro_fit(argv + ["--n-ctx", "4"]) == 0


def test_no_gpu_is_said(tmp_path, capfd):
    from hipro_nb.cli import hipro_fit

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert hipro_fit([str(tmp_path), "--shots", "1", "--device", "cuda"]) == 2
    assert "no GPU" in capfd.readouterr().err


def test_importing_the_package_is_light():
    code = "import sys, hipro_nb; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
