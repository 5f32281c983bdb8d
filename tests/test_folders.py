"""What a folder of pictures says of itself, as the commands print it, and folders that nobody tidied: random
trees of odd names."""

import json
import os
import random
import shutil
import signal
import unicodedata
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO

import pytest
from PIL import Image
from tiny import coloured, image_folder, save_clip

from hipro_nb.cli import RunSettings, files_digest, open_tasks, run_command, run_fit, run_predict
from hipro_nb.tasks import BadData
from hipro_nb.folders import load_image_folder
from hipro_nb.datasets import load_tasks
from hipro_nb.views import warn_of_leaks


@pytest.fixture(autouse=True)
def no_hang():
    "What waits for ever, as the reader of a FIFO does, fails after five minutes."
    def stop(*args): raise AssertionError("still waiting after five minutes")
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def said_by(function, *argv):
    "Exit status of a command and the lines on its standard error stream."
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run_command(function, [str(a) for a in argv])
    return status, err.getvalue().splitlines()


@pytest.fixture
def untidy(tmp_path):
    "16 pictures of which 4 have no ending, notes, a loose picture, a link upwards, copies, ids, camel case."
    root = image_folder(tmp_path / "data", tasks=("art", "photo"), classes=("RedFox", "n02119022"), n=4)
    for i in range(4): (root / f"art/RedFox/{i}.png").rename(root / f"art/RedFox/{i}")
    (root / "photo/RedFox/notes.txt").write_text("sunny", encoding="utf-8")
    coloured(0, 7).save(root / "photo/loose.png")
    (root / "photo/RedFox/up").symlink_to("..")
    shutil.copy(root / "photo/RedFox/0.png", root / "photo/n02119022/copy.png")
    shutil.copy(root / "photo/RedFox/1.png", root / "photo/RedFox/again.png")
    return root


def test_what_is_left_out_is_said(untidy, tmp_path):
    """A line each, with numbers and examples, once over all seeds; and the pictures without an ending are
    trained on."""
    lists = {
        t: [f"{c}/{n}" for c in ("RedFox", "n02119022") for n in ("1.png", "1.png")] for t in ("art", "photo")
    }
    lists["art"][:2] = ["RedFox/1", "RedFox/0"]
    (tmp_path / "list.json").write_text(json.dumps(lists), encoding="utf-8")
    status, lines = said_by(run_fit, untidy, "--method", "zero_shot", "--seeds", 2, "--train-list",
                                tmp_path / "list.json", "--out", tmp_path / "runs", "--device", "cpu")
    assert status == 0, lines
    wanted = (
        (
            "files without an ending that begin as pictures do: 4 taken, 'art/RedFox/0', 'art/RedFox/1',"
            " 'art/RedFox/2' and 1 more"),
        "files in class folders that are no pictures (1 .txt): 1 left out, 'photo/RedFox/notes.txt'",
        "pictures beside class folders: 1 left out, 'photo/loose.png'",
        "links to folders that they lie in: 1 left out, 'photo/RedFox/up'",
        (
            "the train list names images more than once, 'art', 4 entries of 3 images, as 'n02119022/1.png';"
            " 'photo', 4 entries of 2"),
        "1 of 2 class names are split at capitals, 'RedFox' into 'Red Fox'",
        "1 class names are numbers or ids, which say nothing to a model, such as 'n02119022'",
        (
            "1 picture is in training and in test images: photo, train RedFox/1.png = photo, test"
            " RedFox/again.png"),
        (
            "1 picture is under two classes of a task: photo, RedFox/0.png as 'Red Fox' = n02119022/copy.png"
            " as 'n02119022'"))
    for w in wanted: assert sum(w in line for line in lines) == 1, (w, lines)
    assert "classnames.txt" in "".join(lines)
    tasks = json.loads(next((tmp_path / "runs").glob("*/run.json")).read_text(encoding="utf-8"))["tasks"]
    # 8 and 10 pictures, one of them listed twice, two
    assert [sum(t["images"].values()) for t in tasks] == [9, 12]


def test_a_tidy_folder_says_nothing(tmp_path):
    "Nothing is said of a folder that holds pictures in class folders and no more."
    root = image_folder(tmp_path / "data", tasks=("art", "photo"), n=4)
    (root / "README.md").write_text("x", encoding="utf-8")
    (root / "art/Thumbs.db").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tasks = open_tasks(str(root), 1, shots=2)
        again = load_tasks("image_folder", root, "2shot", seed=1)
        assert not warn_of_leaks(tasks, progress=False)
    assert [t.train.images for t in tasks] == [t.train.images for t in again]


@pytest.mark.parametrize("name", ["art/apple/zz.jpg", "art/apple/zz", "classnames.txt", "list.json"])
def test_a_pipe_does_not_hang_a_command(tmp_path, name):
    """A FIFO in the place of a picture, of the class names or of the train list: said or refused by name, at
    once."""
    root = image_folder(tmp_path / "data", tasks=("art", "photo"), classes=("apple", "plum"), n=3)
    os.mkfifo(root / name)
    lists = ["--train-list", root / name] if name == "list.json" else ["--shots", 1]
    status, lines = said_by(
        run_fit, root, "--method", "zero_shot", "--seeds", 1, *lists, "--out", tmp_path / "runs")
    assert status == (0 if name.endswith("zz") else 2) and any(
        os.path.basename(name) in line for line in lines), lines
    assert "is a FIFO" in lines[-1] or name.endswith("zz"), lines


def test_what_cannot_be_read_is_skipped_to_the_end(tmp_path):
    """A link to nothing, a FIFO and half a picture, each named like one: with --skip-bad-images the run ends
    well."""
    root = image_folder(tmp_path / "data", tasks=("art", "photo"), n=3)
    (root / "art/apple/lost.png").symlink_to("nowhere")
    os.mkfifo(root / "art/plum/pipe.png")
    (root / "photo/plum/half.png").write_bytes((root / "photo/plum/0.png").read_bytes()[:100])
    words = [root, "--shots", 1, "--method", "zero_shot", "--seeds", 1, "--out", tmp_path / "runs", "--name",
             "run"]
    assert said_by(run_fit, *words)[0] == 2
    for more in ([], ["--resume"]):
        status, lines = said_by(run_fit, *words, "--skip-bad-images", *more)
        left = [
            line
            for line in lines
            if "skipped 3 unreadable images: art/apple/lost.png, art/plum/pipe.png" in line]
        assert status == 0 and len(left) == 1, lines


def test_a_pipe_in_a_run_or_a_model_does_not_hang(tmp_path):
    "A FIFO in the place of each file that a run or a model is read from: refused, and the file named."
    root, model = image_folder(tmp_path / "data", tasks=("art", "photo"), n=3), save_clip(tmp_path / "model")
    words = [root, "--shots", 1, "--method", "zero_shot", "--seeds", 1, "--model", model, "--out",
             tmp_path / "runs", "--name", "run", "--device", "cpu"]
    assert said_by(run_fit, *words)[0] == 0
    run, picture = tmp_path / "runs/run", root / "art/apple/0.png"
    again, name = (run_fit, *words, "--resume"), (run_predict, run, picture)
    for path, command in ((run / "run.json", again), (run / "run.json", name),
                          (run / "seed1/results.json", again), (run / "seed1/model.safetensors", name),
                          (model / "open_clip_config.json", name),
                          (model / "open_clip_model.safetensors", again), (picture, name), (picture, again)):
        kept = path.rename(tmp_path / "kept")
        os.mkfifo(path)
        status, lines = said_by(*command)
        assert status == 2 and path.name in "".join(lines), (path, lines)
        kept.replace(path)


# ---------------------------------------------------------------- random trees

WORDS = ["mug", "Mug", "MUG ", "m_ug", "m ug", "caf\u00e9", "cafe\u0301", "\u81ea\u8ee2\u8eca", "x" * 200,
         "a.", "a", "...", "-", "1", "1-1", "11", "n02119022", "RedFox", "tench, Tinca", "train", "test",
         "val", "con", "a\nb", "a\x1b[31m", "a\tb", ",", "_", " ", "\u200b", "\ufb01le", "file", "FILE",
         ".hidden", "__MACOSX", "classnames.txt", "\U0001f98a", "*", "{}", "%s"]
ENDS = [".png", ".PNG", ".jpg", ".txt", "", ".1", ".png.txt", ".gif", ".", ".tar.gz"]


def can_be(name):
    "May files be called so here? Not every name under a locale of ASCII"
    try: return bool(os.fsencode(name))
    except UnicodeEncodeError: return False


def contents(rng):
    b = BytesIO()
    Image.new("RGB", (2, 2), rng.choice(["red", "blue", "white"])).save(b, rng.choice(["PNG", "JPEG", "GIF"]))
    whole = b.getvalue()
    return rng.choice([whole] * 40 + [whole[: len(whole) // 2], b"", b"text", rng.randbytes(50)])


def grow(folder, rng, depth):
    "Files, folders, links and pipes of odd names below a folder."
    for _ in range(rng.choice([0, 1, 2, 2, 3, 4])):
        name = rng.choice(WORDS) + (rng.choice(ENDS) if rng.random() < .5 * (3 - depth) / 3 + .2 else "")
        path = folder / name.replace("/", "")
        if name in ("", ".", "..") or not can_be(name) or os.path.lexists(path): continue
        kind = rng.random()
        if kind < .06: path.symlink_to(rng.choice(["..", ".", "nothing", name, "../..", "mug"]))
        elif kind < .08: os.mkfifo(path)
        elif kind < .1 + .25 * depth:
            path.mkdir()
            grow(path, rng, depth - 1)
        else: path.write_bytes(contents(rng))


def tidy(folder, rng):
    "Tasks and classes with pictures, of odd names now and then, so that many trees are read."
    plain = ["mug", "caf\u00e9", "RedFox", "n02119022", "1-1", "11", "tench, Tinca", "\U0001f98a", "a.",
             "x" * 200]
    def some(n): return rng.sample([*filter(can_be, plain if rng.random() < .8 else WORDS)], n)
    classes = some(rng.choice([2, 3]))
    for t in some(rng.choice([1, 2])):
        for part in rng.choice([[""], [""], ["train", "test"], ["train", "val", "test"]]):
            for c in classes if rng.random() < .9 else some(2):
                d = folder / t / part / c
                d.mkdir(parents=True, exist_ok=True)
                for i in range(3):
                    (d / f"{i}{rng.choice(['.png', '.png', '', '.jpg'])}").write_bytes(contents(rng))


def a_list(folder, rng):
    "A train list, right or damaged."
    names = [p.relative_to(folder).parts for p in folder.rglob("*") if p.is_file()]
    d = {}
    for t, *rest in names:
        d.setdefault(t, []).append(unicodedata.normalize(rng.choice(["NFC", "NFD"]), "/".join(rest)))
    d = {t: [n for n in ns if rng.random() < .5] * rng.choice([1, 1, 2]) for t, ns in d.items()}
    change = rng.randrange(8)
    if change == 0 and d:
        d[rng.choice(list(d))] = rng.choice(
            [7, None, "x", {}, [[]], ["../../x"], ["\0"], [""], ["/etc/passwd"]])
    if change == 1: d = {"10": d, "20": d}
    if change == 2: d = [d]
    raw = json.dumps(d, ensure_ascii=rng.random() < .5).encode("utf-8", "surrogatepass")
    if change == 3: raw = raw[: len(raw) // 2]
    if change == 4: raw = bytes(b ^ (rng.random() < .02) for b in raw)
    (folder / "lists.json").write_bytes(raw)
    return folder / "lists.json"


def try_tree(folder, seed):
    "How often one random tree is read, and refused; whatever else happens is an error."
    rng, ends = random.Random(seed), dict(read=0, refused=0)
    folder.mkdir()
    if rng.random() < .7: tidy(folder, rng)
    folders = [folder, *(p for p in folder.rglob("*") if p.is_dir())]
    if rng.random() < .6: grow(rng.choice(folders), rng, 3)
    if rng.random() < .3:
        names = [p.name for p in folder.rglob("*")]
        lines = [
            rng.choice(names or ["x"]) + rng.choice(["\t", " ", ""]) + rng.choice(WORDS) for _ in range(3)]
        if not os.path.lexists(folder / "classnames.txt"):
            (folder / "classnames.txt").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    lists, skip = a_list(folder, rng), rng.random() < .7
    ways = [
        lambda: load_image_folder(folder, shots=1, skip_bad_images=skip, progress=False),
        lambda: load_image_folder(
            folder, lists, fraction=rng.choice([None, 0.1]), skip_bad_images=skip, progress=False),
        lambda: load_tasks("image_folder", folder, "1shot", skip_bad_images=skip, progress=False),
        lambda: warn_of_leaks(open_tasks(str(folder), 0, shots=1, skip_bad_images=skip), progress=False),
        lambda: files_digest(RunSettings(str(folder), shots=1))]
    for way in ways:
        try:
            way()
            ends["read"] += 1
        except BadData as e:
            ends["refused"] += 1
            assert len(str(e)) < 20_000
    return ends


@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, 2000), marks=pytest.mark.slow)],
                         ids=["fast", "slow"])
def test_random_trees_are_read_or_refused(tmp_path, seeds):
    """Trees of odd names, links, pipes and damaged files, with lists that may be damaged: the tasks, or
    `BadData`; never another exception, and never a wait."""
    ends = dict(read=0, refused=0)
    for seed in seeds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for k, n in try_tree(tmp_path / str(seed), seed).items(): ends[k] += n
        shutil.rmtree(tmp_path / str(seed), ignore_errors=True)
    assert min(ends.values()) > len(seeds) / 5, ends
