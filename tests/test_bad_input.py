"DESIGN.md's 'Bad input': every error names the culprit, says what was expected, comes before training and loses nothing."
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import coloured, image_folder, random_clip, save_clip, square

from hipro_nb.data import BadData, Features, FeatureStore, FrozenCLIP, Split, Task, few_shot, load_image_folder, load_tensors, save_tensors, write_atomic


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
    (tmp_path / "zip").write_text("x")
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
    with refused("'art'", "not split", "shots="):
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
    (tmp_path / "list.json").write_text(json.dumps(dict(art=[], photo=[], music=[])))
    with refused("'clip art'", "only", "the same tasks"):
        load_image_folder(folder, train_list=tmp_path / "list.json")


def test_train_list_is_not_json(folder, tmp_path):
    (tmp_path / "list.json").write_text("{")
    with refused("list.json", "expected JSON"):
        load_image_folder(folder, train_list=tmp_path / "list.json")


def test_train_list_without_the_percentage(folder):
    with refused("percentages 5, 10", "fraction=0.2", "0.05, 0.1"):
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
    from hipro_nb.hipro import ZeroShot

    s = Split([square(0), square(1)], [0, 1])
    with refused("'art'", "duplicate"):
        ZeroShot(clip).fit([Task("art", ("a", "b"), s, s)] * 2)


def test_empty_name():
    s = Split([square(0)], [0])
    with refused("'_'", "expected a text"):
        Task("art", ("_",), s, s)


def test_no_tasks(clip):
    from hipro_nb.hipro import HiPro

    with refused("no tasks", "at least 1"):
        HiPro(clip).fit([])


NAMES = ["red pear", "red_apple", "Äpfel", "リンゴ", "X", "a" * 1000, "O'Neil's \"fruit\" <b>", "100% {}"]


def test_odd_names_keep_and_encode(clip):
    "Spaces, underscores, unicode, quotes, braces and a class called X go through; a thousand characters do not fit a prompt."
    from hipro_nb.hipro import HiPro, ZeroShot
    from hipro_nb.train import TrainConfig

    names = tuple(n for n in NAMES if len(n) < 100)
    s = Split([square(i) for i in range(len(names))], range(len(names)))
    task = Task("Größe & <b>", names, s, s)
    zero = ZeroShot(clip).fit([task])
    assert zero.weights("Größe & <b>").shape == (len(names), 32)
    assert "<b>" not in zero.evaluate([task])._repr_html_().replace("&lt;b&gt;", "")
    other = Task("x", ("X",), s.subset([0, 1]).__class__([square(0)], [0]), Split([square(0)], [0]))
    h = HiPro(clip, n_ctx=4, n_shared=2, config=TrainConfig(epochs=1)).fit([task, other], progress=False)
    assert h.weights("x").shape == (1, 32) and h.predict("x", [square(3)]).names == ["X"]
    assert h.predict(0, [square(3)]).names[0] in names


def test_a_thousand_characters_do_not_fit(clip):
    from hipro_nb.hipro import HiPro

    long = " ".join(["pomegranate"] * 90)
    s = Split([square(0), square(1)], [0, 1])
    with refused("pomegranate", "77"):
        HiPro(clip).fit([Task("art", ("a", long), s, s)])


def test_prompt_too_long_for_the_context(clip):
    from hipro_nb.hipro import HiPro

    s = Split([square(0), square(1)], [0, 1])
    with refused("'red pear'", "77"):
        HiPro(clip, n_ctx=75).fit([Task("art", ("a", "red pear"), s, s)])


# ---------------------------------------------------------------- images


def test_truncated_and_unreadable_images_are_listed(folder):
    p, q = folder / "art" / "plum" / "1.png", folder / "photo" / "apple" / "2.png"
    p.write_bytes(p.read_bytes()[:200])
    q.write_text("not an image")
    with refused("2 unreadable images", "art/plum/1.png", "photo/apple/2.png", "skip_bad_images"):
        load_image_folder(folder, shots=1)


def test_unreadable_images_are_skipped_when_asked(folder):
    (folder / "art" / "plum" / "1.png").write_text("not an image")
    with pytest.warns(UserWarning, match="skipped 1 unreadable images: art/plum/1.png"):
        tasks = load_image_folder(folder, shots=2, skip_bad_images=True)
    assert len(tasks[0].train) + len(tasks[0].test) == 14


def test_a_class_of_unreadable_images_only(folder):
    for p in (folder / "art" / "plum").iterdir():
        p.write_bytes(b"")
    with refused("'art'", "'plum'", "once the unreadable ones are skipped"):
        load_image_folder(folder, shots=1, skip_bad_images=True)


@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16", "CMYK", "L", "1", "LA"])
def test_image_modes(clip, tmp_path, mode):
    im = Image.fromarray(np.arange(24 * 20, dtype=np.uint16).reshape(20, 24) * 130) if mode == "I;16" else square(5, mode="L" if mode == "LA" else mode if mode != "1" else "1")
    p = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    im.convert("LA").save(p) if mode == "LA" else im.save(p)
    x = FeatureStore(None).features(clip, [p], progress=False)
    assert x.shape == (1, 32) and x.isfinite().all() and abs(float(x.norm()) - 1) < 1e-5


def test_one_pixel_wide(clip, tmp_path):
    square(1, size=(1, 300)).save(tmp_path / "a.png")
    square(1, size=(1, 1)).save(tmp_path / "b.png")
    assert FeatureStore(None).features(clip, [tmp_path / "a.png", tmp_path / "b.png"], progress=False).isfinite().all()


def test_hidden_files_and_folders_are_left_out(folder):
    (folder / ".git").mkdir()
    (folder / "art" / ".cache").mkdir()
    (folder / "art" / "plum" / ".DS_Store").write_text("x")
    (folder / "art" / "plum" / "Thumbs.db").write_text("x")
    (folder / "__MACOSX").mkdir()
    tasks = load_image_folder(folder, shots=2)
    assert [t.name for t in tasks] == ["art", "clip art", "photo"] and len(tasks[0].train) + len(tasks[0].test) == 15


def test_symbolic_links(folder, tmp_path):
    (folder / "linked").symlink_to(folder / "art", target_is_directory=True)
    (folder / "art" / "plum" / "link.png").symlink_to(folder / "photo" / "plum" / "0.png")
    tasks = load_image_folder(folder, shots=2)
    assert [t.name for t in tasks] == ["art", "clip art", "linked", "photo"] and len(tasks[0].train) + len(tasks[0].test) == 16


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
