"""Every data set of both papers from a miniature root with its exact file layout, and what is said of a root
that is not right.

The miniatures have the names and forms of the real files and fewer images; what is expected of them is given
as `counts`, as a user with a copy of his own would."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO, StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from project import ROOT, copy_project, run
from tiny import image_folder

from hipro_nb import datasets as ds
from hipro_nb.cli import run_command, run_fit
from hipro_nb.compare import run_compare
from hipro_nb.tasks import BadData
from hipro_nb.store import FeatureStore
from hipro_nb.files import load_tensors
from hipro_nb.images import open_image
from hipro_nb.datasets import sources
from hipro_nb.datasets.domains import office_home_lists, scan_domains
from hipro_nb.datasets.fetch import RemoteFile, fetch_all, file_hash
from hipro_nb.datasets.wrapped import cifar100_groups, scan_cifar100

SHARED = ROOT.parent / "shared/data"
FINE = sorted(c for g in cifar100_groups.values() for c in g)
DOMAINS = "clipart infograph painting quickdraw real sketch".split()
TEN = dict(
    caltech101=("caltech-101", "101_ObjectCategories", "Caltech101"),
    oxford_pets=("oxford_pets", "images", "OxfordPets"),
    stanford_cars=("stanford_cars", "", "StanfordCars"),
    oxford_flowers=("oxford_flowers", "jpg", "OxfordFlowers"),
    food101=("food-101", "images", "Food101"),
    fgvc_aircraft=("fgvc_aircraft", "images", None),
    sun397=("sun397", "SUN397", "SUN397"),
    # folder, images, split_zhou_*.json
    dtd=("dtd", "images", "DescribableTextures"),
    eurosat=("eurosat", "2750", "EuroSAT"),
    ucf101=("ucf101", "UCF-101-midframes", "UCF101"),
)


@pytest.fixture
def tmp(tmp_path, monkeypatch):
    "Thousands of small files: in memory, where the system has such a place."
    if not os.access("/dev/shm", os.W_OK): yield tmp_path; return
    import tempfile

    path = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="hipro_nb-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    "A loader that asks the network unasked fails here."
    import urllib.request

    def refuse(*args, **kwargs): raise AssertionError(f"asked the network for {args}")
    monkeypatch.setattr("hipro_nb.datasets.fetch.urlopen", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


PNG = None


def picture(path):
    "One pixel, always the same bytes: these tests look at names and counts."
    global PNG
    if PNG is None:
        b = BytesIO(); Image.new("RGB", (1, 1)).save(b, "PNG"); PNG = b.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PNG)


def pictures(root, names):
    for n in names: picture(root / n)
    return root


def refused(contains, f, *args, **kwargs):
    "A `BadData` of one line that says what is asked."
    with pytest.raises(BadData) as e, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f(*args, **kwargs)
    assert contains in str(e.value), str(e.value)
    assert "\n" not in str(e.value)


# ------------------------------------------------------------------ miniatures


def office_home(root, other=lambda t: t):
    "The files of the 10% lists and one more of each class."
    lists = office_home_lists()["10"]
    pictures(
        root,
        [
            f"{other(t)}/{c}/{n}"
            for t, cs in lists.items()
            for c, ns in cs.items()
            for n in [*ns, "99999.jpg"]])
    return {t: sum(len(ns) + 1 for ns in cs.values()) for t, cs in lists.items()}


def domain_lists(root, domains, splits, classes, n=20):
    counts = {}
    for d in domains:
        rows = [
            (f"{d}/{c}/{d}_{k:03}_{i:06}.jpg", k, i < n * 0.7 and not (d == "painting" and c == "t-shirt"))
            for k, c in enumerate(classes)
            for i in range(n)]
        pictures(root, [r[0] for r in rows])
        (root / splits).mkdir(parents=True, exist_ok=True)
        for part, is_train in dict(train=True, test=False).items():
            mine = [r for r in rows if r[2] == is_train]
            (root / splits / f"{d}_{part}.txt").write_text(
                "".join(f"{p} {k}\n" for p, k, _ in mine), encoding="utf-8")
            counts.setdefault(d, {})[part] = len(mine)
    return counts


def cifar_files(root, n_train=25, n_test=2):
    folder, gen = root / "cifar-100-python", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for k, n in dict(train=n_train, test=n_test).items():
        y = np.repeat(np.arange(100), n)
        (folder / k).write_bytes(
            pickle.dumps(
                dict(data=gen.integers(0, 255, (len(y), 3072), dtype=np.uint8), fine_labels=y.tolist()),
                protocol=2))
    (folder / "meta").write_bytes(pickle.dumps(dict(fine_label_names=FINE), protocol=2))
    return {k: file_hash(folder / k) for k in ("train", "test", "meta")}


def the_ten(root, k=2):
    "All ten folders, with split files, k classes each."
    n, counts = dict(train=18, val=5, test=3), {}
    for name, (folder, images, split) in TEN.items():
        counts[name] = {p: k * m for p, m in n.items()}
        if name == "fgvc_aircraft":
            rows = {
                p: [f"{i:03}{j}{m} Boeing {700 + i}" for i in range(k) for j in range(m)]
                for p, m in n.items()}
            pictures(root / name, [f"images/{r.split()[0]}.jpg" for rs in rows.values() for r in rs])
            (root / name / "variants.txt").write_text(
                "".join(f"Boeing {700 + i}\n" for i in range(k)), encoding="utf-8")
            for p, rs in rows.items():
                (root / name / f"images_variant_{p}.txt").write_text("\n".join(rs), encoding="utf-8")
            continue
        top = lambda p: (
            ("cars_test/" if p == "test" else "cars_train/") if name == "stanford_cars" else "abc/")
        rows = {
            p: [[f"{top(p)}{p}{c}_{j:05}.jpg", c, f"{name} kind {c}"] for c in range(k) for j in range(m)]
            for p, m in n.items()}
        pictures(root / folder / images, [r[0] for rs in rows.values() for r in rs])
        (root / folder / f"split_zhou_{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    return counts


# ------------------------------------------------------------------ each data set at its protocol


@pytest.mark.parametrize("name", [lambda t: t, lambda t: t.replace("_", " "), str.lower],
                         ids=["underscore", "space", "lower"])
def test_office_home(tmp, name):
    counts = office_home(tmp / "OfficeHomeDataset_10072016", name)
    tasks = ds.load_tasks("office_home", tmp, "10%", counts=counts)
    assert {t.name: (len(t.train), len(t.test)) for t in tasks} == {
        t: (n - 65, 65) for t, n in counts.items()}
    assert [len(t.train) for t in tasks] == [243, 437, 444, 436] and all(t.n_classes == 65 for t in tasks)
    refused("Office-Home: task 'Art' has 308 images, expected 2,427", ds.load_tasks, "office_home", tmp)
    refused("images of the published 20% list are not there", ds.load_tasks, "office_home", tmp, "20%",
            counts=counts)
    assert [len(t.train) for t in ds.load_tasks("office_home", tmp, "1shot", counts=counts)] == [65] * 4


def test_office_home_is_the_published_split():
    "Independent of the loader: the packed lists against the JSON, as sets of paths."
    published = SHARED / "splits/office_home_train.json"
    if not published.is_file(): pytest.skip("no shared data")
    for q, tasks in json.loads(published.read_text(encoding="utf-8")).items():
        for t, paths in tasks.items():
            packed = office_home_lists()[q][t]
            assert sorted(paths) == sorted(f"{c}/{n}" for c, ns in packed.items() for n in ns), (q, t)


def test_domainnet(tmp):
    counts = domain_lists(tmp / "domainnet", DOMAINS, "splits", ("bed", "axe", "t-shirt"))
    small = replace(sources.find_dataset("domainnet"), name="domainnet_small", counts=counts, n_classes=3)
    sources.register_dataset(small, replace_old=True)
    tasks = ds.load_tasks("domainnet_small", tmp, "10%")
    assert [t.name for t in tasks] == DOMAINS
    assert [len(t.train) for t in tasks] == [4, 4, 3, 4, 4, 4] and [len(t.test) for t in tasks] == [
        18, 18, 32, 18, 18, 18]
    assert tasks[2].classnames[2] == "t-shirt" and 2 not in tasks[2].train.labels
    refused("has 3 classes, expected 345", ds.load_tasks, "domainnet", tmp)
    (tmp / "domainnet/splits/real_test.txt").unlink()
    refused("no list", ds.load_tasks, "domainnet_small", tmp)
    del sources._registry["domainnet_small"]


def test_minidomainnet(tmp):
    domain_lists(tmp / "domainnet", ["clipart", "painting", "real", "sketch"], "splits_mini",
                 [f"class_{i:03}" for i in range(126)], n=4)
    refused(
        "its tasks have 2,016 images together, expected 140,006", ds.load_tasks, "minidomainnet", tmp, "1shot"
    )
    tasks = ds.load_tasks("minidomainnet", tmp, "1shot", counts=False)
    assert [(t.name, t.n_classes, len(t.train), len(t.test)) for t in tasks] == [
        (d, 126, 126, 126) for d in ("clipart", "painting", "real", "sketch")]
    (tmp / "domainnet/splits_mini/real_train.txt").unlink()
    refused("real_train.txt", ds.load_tasks, "minidomainnet", tmp, "1shot", counts=False)


@pytest.mark.parametrize("q,per_class", [("4%", 1), ("8%", 2)])
def test_cifar100(tmp, monkeypatch, q, per_class):
    sums = cifar_files(tmp)
    monkeypatch.setitem(
        sources._registry, "cifar100", replace(ds.cifar100, scan=partial(scan_cifar100, sums=sums)))
    counts = {g: dict(train=125, test=10) for g in cifar100_groups}
    tasks = ds.load_tasks("cifar100", tmp, q, counts=counts)
    assert len(tasks) == 20 and all(
        np.bincount(t.train.labels).tolist() == [per_class] * 5 and len(t.test) == 10 for t in tasks)
    refused("has 125 images in train, expected 2,500", ds.load_tasks, "cifar100", tmp, q)


def test_cifar100_damaged(tmp):
    cifar_files(tmp)
    refused("has SHA-256", ds.load_tasks, "cifar100", tmp)
    refused("damaged, or not the published file", ds.load_tasks, "cifar100", tmp)


def test_cifar100_is_not_unpickled_unchecked(tmp):
    "A pickle runs code when it is read: one with another checksum is not."
    cifar_files(tmp)

    class Bomb:
        def __reduce__(self): return os.mkdir, (str(tmp / "exploded"),)

    (tmp / "cifar-100-python/train").write_bytes(pickle.dumps(Bomb()))
    refused("has SHA-256", ds.load_tasks, "cifar100", tmp)
    assert not (tmp / "exploded").exists()


def test_cifar100_folders():
    folder = SHARED / "cifar100_subset"
    if not folder.is_dir(): pytest.skip("no shared data")
    tasks = ds.load_tasks(
        "cifar100", folder, "4%", counts={g: dict(train=100, test=50) for g in cifar100_groups})
    assert len(tasks) == 20 and {p.parent.name for t in tasks for p in t.test.images} == set(FINE)
    refused("CIFAR-100: task 'aquatic mammals' has 100 images in train, expected 2,500", ds.load_tasks,
            "cifar100", folder, "4%")
    assert {len(t.test) for t in ds.load_tasks("cifar100", folder, "4%", counts=False)} == {50}


def test_ten(tmp):
    counts = the_ten(tmp)
    n_classes = {t: 2 for t in counts}
    small = sources.register_dataset(
        replace(sources.find_dataset("ten"), name="ten_small", counts=counts, n_classes=n_classes),
        replace_old=True)
    for shots in (1, 2, 4, 8, 16):
        tasks = ds.load_tasks("ten_small", tmp, f"{shots}shot")
        assert [t.name for t in tasks] == list(TEN)
        assert {(len(t.train), len(t.val), len(t.test)) for t in tasks} == {(2 * shots, 2 * min(shots, 4), 6)}
    assert {t.name: t.meta["template"] for t in tasks}[
        "food101"] == "a photo of {}, a type of food." and tasks[0].meta["metric"] == "accuracy"
    refused("Caltech101", ds.load_tasks, "caltech101", tmp)
    refused("task 'caltech101' has 2 classes, expected 100", ds.load_tasks, "ten", tmp)
    (tmp / "ucf101/split_zhou_UCF101.json").unlink()
    refused("no split_zhou_UCF101.json", ds.load_tasks, "ten_small", tmp)
    assert not list(tmp.rglob("split_fewshot")), "nothing is written beside the data"
    del sources._registry[small.name]


@pytest.mark.parametrize("name", TEN)
def test_each_of_the_ten(tmp, name):
    counts = the_ten(tmp)
    for root in (tmp, tmp / TEN[name][0]):
        [task] = ds.load_tasks(name, root, "2shot", counts=False)
        assert (task.name, task.n_classes, len(task.train), len(task.test)) == (
            name, 2, 4, counts[name]["test"])


def test_published_counts():
    "The numbers of the papers, typed here a second time."
    n = {name: sources.find_dataset(name).n_images for name in ds.list_datasets()}
    assert (
        n["office_home"] == 15588
        and n["domainnet"] == 586575
        and n["minidomainnet"] == 140006
        and n["office_caltech10"] == 2533
        and n["pacs"] == 9991
        and n["cifar100"] == 60000)
    assert sum(d.n_classes for d in ds.the_ten.values()) == 1191
    assert {k: n[k] for k in ds.the_ten} == dict(caltech101=8242, oxford_pets=7349, stanford_cars=16185,
                                                 oxford_flowers=8189, food101=101000, fgvc_aircraft=10000,
                                                 sun397=39700, dtd=5640, eurosat=27000, ucf101=13320)


def test_the_ten_as_coop_has_them():
    """Sizes, templates, folders and split files of CoOp's repository (datasets/*.py, trainers/zsclip.py,
    Table 4 of its paper), typed here a second time."""
    rows = dict(caltech101=(4128, 1649, 2465, 100, "a photo of a {}."),
                oxford_pets=(2944, 736, 3669, 37, "a photo of a {}, a type of pet."),
                stanford_cars=(6509, 1635, 8041, 196, "a photo of a {}."),
                oxford_flowers=(4093, 1633, 2463, 102, "a photo of a {}, a type of flower."),
                food101=(50500, 20200, 30300, 101, "a photo of {}, a type of food."),
                fgvc_aircraft=(3334, 3333, 3333, 100, "a photo of a {}, a type of aircraft."),
                sun397=(15880, 3970, 19850, 397, "a photo of a {}."),
                dtd=(2820, 1128, 1692, 47, "{} texture."),
                eurosat=(13500, 5400, 8100, 10, "a centered satellite photo of {}."),
                ucf101=(7639, 1898, 3783, 101, "a photo of a person doing {}."))
    assert list(rows) == list(ds.the_ten)
    for name, (train, val, test, k, template) in rows.items():
        d = ds.the_ten[name]
        given = d.scan.keywords["one"]
        assert (d.counts, d.n_classes, given.meta["template"]) == (
            {name: dict(train=train, val=val, test=test)}, k, template)
        if name != "fgvc_aircraft":
            assert (given.folder, given.images, given.split_file) == (
                TEN[name][0], TEN[name][1] or ".", f"split_zhou_{TEN[name][2]}.json")


def test_old_class_names_become_coops(tmp):
    """A split file of an early version holds the folders' names of Caltech101 and EuroSAT; the table of
    CoOp's code, typed a second time."""
    new = dict(
        caltech101=dict(
            airplanes="airplane", Faces="face", Leopards="leopard", Motorbikes="motorbike", lotus="lotus"),
        eurosat=dict(AnnualCrop="Annual Crop Land", Forest="Forest",
                     HerbaceousVegetation="Herbaceous Vegetation Land", Highway="Highway or Road",
                     Industrial="Industrial Buildings", Pasture="Pasture Land",
                     PermanentCrop="Permanent Crop Land", Residential="Residential Buildings", River="River",
                     SeaLake="Sea or Lake"))
    for name, table in new.items():
        folder, images, split = TEN[name]
        rows = {p: [[f"{c}/{p}.jpg", k, c] for k, c in enumerate(table)] for p in ("train", "val", "test")}
        pictures(tmp / folder / images, [r[0] for rs in rows.values() for r in rs])
        (tmp / folder / f"split_zhou_{split}.json").write_text(json.dumps(rows), encoding="utf-8")
        assert ds.load_tasks(name, tmp, "1shot", counts=False)[0].classnames == tuple(table.values())


def test_office_caltech10():
    folder = SHARED / "office_caltech10"
    if not folder.is_dir(): pytest.skip("no shared data")
    tasks = ds.load_tasks("office_caltech10", SHARED, "4shot", check_images=True, progress=False)
    assert {t.name: len(t.train) + len(t.test) for t in tasks} == dict(
        amazon=958, caltech=1123, dslr=157, webcam=295)
    assert [len(t.train) for t in tasks] == [40] * 4 and sum(
        len(t.train) + len(t.test) for t in tasks) == 2533


def test_pacs(tmp):
    domains = ("art_painting", "cartoon", "photo", "sketch")
    pictures(
        tmp,
        [
            f"images/{t}/{c}/{i}.png"
            for t in domains
            for c in "dog elephant giraffe guitar horse house person".split()
            for i in range(3)])
    tasks = ds.load_tasks("pacs", tmp, "1shot", counts={t: 21 for t in domains})
    assert [(t.name, len(t.train), len(t.test)) for t in tasks] == [(t, 7, 14) for t in domains]
    for n in (20, 22):
        refused(f"task 'sketch' has 21 images, expected {n}", ds.load_tasks, "pacs", tmp,
                counts={t: n if t == "sketch" else 21 for t in domains})


# ------------------------------------------------------------------ one's own


def own(root, tasks=("art", "clip"), classes=("mug", "bed"), n=4):
    return pictures(root, [f"{t}/{c}/{i}.png" for t in tasks for c in classes for i in range(n)])


def test_own_folder_in_one_line(tmp):
    a, b = (ds.load_tasks("image_folder", own(tmp / "own"), "2shot", seed=3) for _ in range(2))
    assert [t.train.images for t in a] == [t.train.images for t in b] and [len(t.test) for t in a] == [4, 4]
    draws = {
        tuple(ds.load_tasks("image_folder", tmp / "own", "2shot", seed=s)[0].train.images) for s in range(6)}
    assert len(draws) > 1, "another seed, another draw"


def test_own_names(tmp):
    own(tmp, classes=("n01440764", "SeaHorse", "tabby, tabby cat"))
    (tmp / "classnames.txt").write_text("n01440764 tench\n", encoding="utf-8")
    assert ds.load_tasks("image_folder", tmp, "1shot")[0].classnames == ("Sea Horse", "tench", "tabby")
    (tmp / "classnames.txt").write_text("n01440764 tench\nSeaHorse Tench\n", encoding="utf-8")
    refused("are all named 'tench'", ds.load_tasks, "image_folder", tmp, "1shot")


def test_datasets_library(tmp):
    "With the real library, where it is installed; it is optional."
    hf = pytest.importorskip("datasets")
    names = hf.ClassLabel(names=["mug", "bed"])
    rows = dict(img=[Image.new("RGB", (4, 4), (40 * i, 0, 0)) for i in range(6)], fine_label=[0, 1] * 3)
    made = hf.Dataset.from_dict(rows, features=hf.Features(img=hf.Image(), fine_label=names))
    hf.DatasetDict(train=made, validation=made, test=made).save_to_disk(tmp / "saved")
    [task] = ds.load_tasks("huggingface", tmp / "saved", "1shot", check_images=True, progress=False)
    assert (task.name, len(task.train), len(task.val), len(task.test), task.classnames) == (
        "saved", 2, 2, 6, ("mug", "bed"))
    assert all(
        isinstance(x, BytesIO) for x in task.test.images), "pictures stay encoded until they are needed"
    assert [open_image(x).getpixel((0, 0))[0] for x in task.test.images] == [0, 40, 80, 120, 160, 200]
    made.save_to_disk(tmp / "one")
    assert len(ds.load_tasks("huggingface", tmp / "one", "1shot")[0].test) == 4
    made.add_column("coarse_label", [0] * 6, feature=names).save_to_disk(tmp / "two")
    refused("2 columns of kind ClassLabel, so one has to be named", ds.load_tasks, "huggingface", tmp / "two",
            "1shot")
    assert (
        len(
            ds.from_hugging_face("two", dict(train=hf.load_from_disk(tmp / "two")), label="fine_label").parts[
                "all"])
        == 6)
    hf.DatasetDict(test=made).save_to_disk(tmp / "no_train")
    refused("has the parts test: expected train", ds.load_tasks, "huggingface", tmp / "no_train", "1shot")
    for wrong in ("none", "saved/train/state.json", ""):
        refused(
            "expected a folder written by save_to_disk", ds.load_tasks, "huggingface", tmp / wrong, "1shot")


def test_datasets_library_is_an_extra(tmp, monkeypatch):
    "`pip install '.[hf]'` brings it, and who asks for such a set without it is told so."
    status, out = run(
        sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp, cwd=copy_project(tmp / "copy"))
    assert status == 0, out
    assert "[hf]\ndatasets" in (tmp / "hipro_nb.egg-info/requires.txt").read_text(encoding="utf-8")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("pip install '.[hf]'", ds.load_tasks, "huggingface", tmp, "1shot")


# ------------------------------------------------------------------ from the command line


def hipro_fit(*argv, run=run_fit):
    "Exit status, and what is said on the standard error stream."
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err): status = run_command(run, [str(a) for a in argv])
    return status, err.getvalue()


@pytest.fixture
def squares(tmp, monkeypatch):
    "A registered data set that a server of this machine has as an archive."
    made = image_folder(tmp / "made", tasks=("art", "photo"), classes=("apple", "plum"), n=4)
    www = tmp / "www"
    www.mkdir()
    with tarfile.open(www / "squares.tar", "w") as t: t.add(made, "squares")
    remote = RemoteFile(f"{serve(monkeypatch, www)}/squares.tar", "squares.tar",
                        file_hash(www / "squares.tar"), unpack="", gives="squares")
    scan = partial(scan_domains, tasks=["art", "photo"], classes=["apple", "plum"], inner=["squares"])
    monkeypatch.setitem(
        sources._registry,
        "squares",
        ds.DataSet("squares", "Squares", scan, "2shot", counts=dict(art=8, photo=8), source="a server",
                   files=(remote,)))
    return tmp


def test_download_option(squares):
    argv = ["squares", "--root", squares / "data", "--method", "zero_shot", "--seeds", "1", "--out",
            squares / "runs"]
    status, err = hipro_fit(*argv)
    assert status == 2 and "no folder" in err and "download=True" in err and not (squares / "data").exists()
    assert hipro_fit(*argv, "--download")[0] == 0
    assert sorted(p.name for p in (squares / "data").iterdir()) == [
        ".squares.tar.unpacked", "squares", "squares.tar"]
    record = json.loads(next((squares / "runs").glob("*/run.json")).read_text(encoding="utf-8"))
    assert {t["name"]: t["images"] for t in record["tasks"]} == {
        "art": dict(train=4, test=4), "photo": dict(train=4, test=4)}
    status, err = hipro_fit(squares / "made", "--download", "--shots", "1", "--out", squares / "other")
    assert status == 2 and "--download: expected the name of a data set and --root" in err


def test_views_option(squares):
    def fit(name, *more):
        return hipro_fit(
            squares / "made", "--shots", "2", "--seeds", "1", "--out", squares / "runs", "--name", name, *more
        )

    def coop(name, *more):
        "CoOp with little to learn"
        return fit(name, "--method", "coop", "--epochs", "4", "--n-ctx", "2", "--lr", "0.1", *more)

    def learned(name):
        return [
            w.numpy().tobytes()
            for _, w in sorted(
                load_tensors(squares / f"runs/{name}/seed1/classifiers.safetensors")[0].items())]

    for name, views in dict(
        plain=[], one=["--views", 1], two=["--views", 2], again=["--views", 2, "--store", squares / "fresh"]
    ).items(): assert coop(name, *views)[0] == 0
    assert (
        learned("plain") == learned("one")
        and learned("two") == learned("again")
        and learned("two") != learned("plain"))
    held = FeatureStore(squares / "fresh").towers()
    assert sorted(t["images"] for t in held) == [
        8, 8, 16], "two views of 8 training images, and every image as it is"
    status, err = coop("two", "--views", 4, "--resume")
    assert status == 2 and "settings.views was 2, is 4" in err
    for views, why in ((3, "expected 1 for plain images, or a number that divides the epochs"),
                       (0, "views 0 with 4 epochs")):
        status, err = coop("wrong", "--views", views)
        assert status == 2 and why in err and not (squares / "runs/wrong").exists()
    assert "learns inside the image tower" in fit("vpt", "--views", 2, "--method", "vpt")[1]
    assert (
        "views of one image would be on both sides" in fit("probe", "--views", 2, "--method", "linear_probe")[
            1])


def test_compare_takes_views_and_download(squares, monkeypatch):
    """The options of `hipro_fit` in `hipro_compare`: same views, same classifiers; what cannot use views is
    left out and named."""
    words = ["--shots", "2", "--seeds", "1", "--epochs", "4", "--n-ctx", "2", "--lr", "0.1", "--views", "2",
             "--store", squares / "features"]
    named = ["squares", "--root", squares / "data"]
    assert (
        hipro_fit(*named, *words, "--method", "coop", "--out", squares / "early")[0] == 2
        and not (squares / "data").exists())
    status, err = hipro_fit(*named, *words, "--methods", "zero_shot,coop", "--jobs", "0", "--download",
                            "--out", squares / "runs", run=run_compare)
    assert status == 0, err
    assert sorted(p.name for p in (squares / "data").iterdir()) == [
        ".squares.tar.unpacked",
        "squares",
        "squares.tar",
    ]
    assert hipro_fit(*named, *words, "--method", "coop", "--out", squares / "runs", "--name", "fit")[0] == 0
    learned = [
        sorted(load_tensors(next((squares / "runs").glob(f"{where}/seed1/model.safetensors")))[0].items())
        for where in ("squares-*/coop", "fit")
    ]
    assert [(k, v.numpy().tobytes()) for k, v in learned[0]] == [
        (k, v.numpy().tobytes()) for k, v in learned[1]
    ]
    assert (
        json.loads(next((squares / "runs").glob("squares-*/run.json")).read_text(encoding="utf-8"))[
            "settings"
        ]["views"]
        == 2
    )
    status, err = hipro_fit(
        *named, *words, "--methods", "coop,linear_probe", "--out", squares / "other", run=run_compare
    )
    assert (
        status == 2
        and "linear_probe cannot be run: --views 2 with" in err
        and "views of one image would be on both sides" in err
        and not (squares / "other").exists()
    )
    asked = []
    monkeypatch.setattr("hipro_nb.compare.open_model", lambda *a: asked.append(a))
    status, err = hipro_fit(
        "squares",
        "--root",
        squares / "none",
        "--model",
        "RN50-quickgelu",
        "--pretrained",
        "openai",
        "--shots",
        "1",
        "--out",
        squares / "other",
        run=run_compare,
    )
    assert status == 2 and "none" in err and not asked, "the data are looked at before weights are fetched"


def test_embedded_model_on_a_folder_is_said(squares):
    status, err = hipro_fit(
        squares / "made", "--shots", "1", "--method", "zero_shot", "--seeds", "1", "--out", squares / "runs"
    )
    assert status == 0 and "no --model: the embedded model is used" in err
    status, err = hipro_fit(squares / "made/art", "--shots", "1", "--out", squares / "runs")
    assert status == 2 and "one folder more, named after the task" in err


# ------------------------------------------------------------------ bad input: a clear error each, nothing
# half-written


def test_root_missing_file_or_closed(tmp, monkeypatch):
    for name in ds.list_datasets():
        refused("none", ds.load_tasks, name, tmp / "none")
        picture(tmp / "a_file")
        refused("a_file", ds.load_tasks, name, tmp / "a_file")
    refused("no folder", ds.load_tasks, "office_home", tmp / "none")
    refused("is a file, not a folder", ds.load_tasks, "domainnet", tmp / "a_file")

    def closed(self): raise PermissionError(13, "Permission denied", str(self))
    (tmp / "closed").mkdir()
    monkeypatch.setattr(Path, "iterdir", closed)
    for name in ds.list_datasets(): refused("Permission denied", ds.load_tasks, name, tmp / "closed")


def by_nobody(f):
    """Run `f` in a child without a superuser's rights: the system's own refusals, not imitated ones. What it
    raises is raised here."""
    import torchvision.datasets  # noqa: F401, what is imported later may lie where nobody may look

    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        said = b""
        try:
            if os.geteuid() == 0: os.seteuid(65534)
            f()
        except BaseException as e: said = f"{type(e).__name__}: {e}".encode()[:4000]
        finally: os.write(theirs, said); os._exit(0)
    os.close(theirs)
    with open(ours, encoding="utf-8") as pipe: said = pipe.read()
    os.waitpid(pid, 0)
    assert not said, said


def homes(root): return office_home(root / "office_home")


def beds(root): return domain_lists(root / "domainnet", DOMAINS, "splits", ("bed",))


def crowded(root):
    "Pictures of one's own, and a list of class names with two on a line"
    own(root)
    (root / "classnames.txt").write_text("mug cup", encoding="utf-8")


FOLDERS = "Permission denied; expected ROOT/<task>/<class>/*"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="a system without user numbers")
@pytest.mark.parametrize("name,make,closed,why", [
    ("office_home", homes, ".", f"cannot read the folder {{}}: {FOLDERS}"),
    ("office_home", homes, "office_home", f"office_home: {FOLDERS}"),
    ("office_home", homes, "office_home/Art", "office_home/Art: Permission denied"),
    ("domainnet", beds, "domainnet/splits/real_test.txt", "cannot read the list {}: Permission denied"),
    ("domainnet", beds, "domainnet/real/bed", "cannot read {}: Permission denied"),
    ("dtd", the_ten, "dtd/split_zhou_DescribableTextures.json", "cannot read {}: Permission denied"),
    ("dtd", the_ten, "dtd/images", "dtd/images/abc: Permission denied"),
    ("fgvc_aircraft", the_ten, "fgvc_aircraft/variants.txt", "cannot read {}: Permission denied"),
    ("cifar100", cifar_files, "cifar-100-python/train", "cannot read {}: Permission denied"),
    ("image_folder", own, ".", "cannot read the folder {}: Permission denied"),
    ("image_folder", own, "art/mug", "cannot read the folder {}: Permission denied"),
    ("image_folder", crowded, "classnames.txt",
     "cannot read {}: Permission denied; expected a line for each folder"),
], ids=lambda v: v if isinstance(v, str) and "{" not in v else "")
def test_no_permission(tmp, name, make, closed, why):
    "A folder, a list or a file that may not be read is named, and no source is offered for what is there."
    root = tmp / "root"
    tmp.chmod(0o755)
    make(root)
    where = root / closed
    before = sorted(p.relative_to(root) for p in root.rglob("*"))
    mode = where.stat().st_mode
    where.chmod(0)
    try:
        by_nobody(lambda: refused(why.format(where), ds.load_tasks, name, root, "1shot", counts=False))
    finally: where.chmod(mode)
    assert sorted(p.relative_to(root) for p in root.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="a system without user numbers")
def test_no_permission_in_the_commands(tmp, monkeypatch):
    "Data, runs, store and download where nobody may look or write: one line each, nothing written."
    data = own(tmp / "data")
    tmp.chmod(0o755)
    for name, mode in dict(closed=0, listed=0o444, locked=0o555).items():
        own(tmp / name)
        (tmp / name).chmod(mode)
    remote = RemoteFile(f"{serve(monkeypatch, data)}/x.tar", "x.tar", "0" * 64, unpack="")
    scan = partial(scan_domains, tasks=["a"], classes=["b"])
    squares = ds.DataSet("squares", "Squares", scan, "2shot", source="a server", files=(remote,))
    monkeypatch.setitem(sources._registry, "squares", squares)
    more = ["--shots", 1, "--method", "zero_shot", "--seeds", 1]
    runs, unwritten = tmp / "runs", (
        "x.tar.part: Permission denied; expected a folder that can be written. Nothing was fetched")
    places = [([tmp / "closed"], runs, "closed: Permission denied"),
              ([tmp / "listed"], runs, "listed/art: Permission denied"),
              ([data], tmp / "locked/runs", "cannot make {}/data-zero_shot: Permission denied"),
              (["squares", "--root", tmp / "locked/new", "--download"], runs, unwritten)]
    def all_refused():
        for argv, out, why in places:
            status, err = hipro_fit(*argv, *more, "--out", out)
            assert status == 2 and why.format(out) in err and "Traceback" not in err, (argv, err)

    try: by_nobody(all_refused)
    finally:
        for name in ("closed", "listed", "locked"): (tmp / name).chmod(0o755)
    assert sorted(p.name for p in tmp.iterdir()) == ["closed", "data", "listed", "locked"]
    assert not (tmp / "locked/new").exists()


def test_truncated_image(tmp):
    Image.new("RGB", (60, 60)).save((own(tmp) / "art/mug/0.png").with_suffix(".jpg"), "JPEG")
    whole = (tmp / "art/mug/0.jpg").read_bytes()
    (tmp / "art/mug/0.jpg").write_bytes(whole[: len(whole) - 200])
    refused(
        "1 unreadable images", ds.load_tasks, "image_folder", tmp, "2shot", check_images=True, progress=False
    )
    refused("0.jpg", ds.load_tasks, "image_folder", tmp, "2shot", check_images=True, progress=False)
    with pytest.warns(UserWarning, match="skipped 1 unreadable images: art, all"):
        assert [
            len(t.test)
            for t in ds.load_tasks("image_folder", tmp, "2shot", skip_bad_images=True, progress=False)
        ] == [4, 4]


def test_only_what_is_looked_for_may_not_collide(tmp):
    """Names of images are taken as they are (PACS has pairs that differ by a dash), and another library's
    folder beside the one asked for is nobody's business."""
    domains, classes = (
        "art_painting",
        "cartoon",
        "photo",
        "sketch",
    ), "dog elephant giraffe guitar horse house person".split()
    pictures(
        tmp / "pacs/images",
        [f"{t}/{c}/n02103406_{n}.png" for t in domains for c in classes for n in ("34-11", "341-1", "3411")],
    )
    pictures(tmp, ["my_photos/x.png", "my photos/x.png", "caltech101/x.png", "caltech-101/x.png"])
    assert [len(t.train) + len(t.test) for t in ds.load_tasks("pacs", tmp, "2shot", counts=False)] == [21] * 4


def test_case_colliding_names(tmp):
    office_home(tmp)
    (tmp / "ART").mkdir()
    if len({p.name.casefold() for p in tmp.iterdir()}) == len(list(tmp.iterdir())):
        pytest.skip("the file system does not tell cases apart")
    refused("holds 'ART' and 'Art', which differ in case", ds.load_tasks, "office_home", tmp)
    refused("duplicate", ds.load_tasks, "image_folder", own(tmp / "own", classes=("Mug", "mug")), "1shot")


def test_two_spellings(tmp):
    own(tmp, tasks=("art",), classes=("Alarm_Clock", "bed"))
    own(tmp, tasks=("clip",), classes=("alarm clock", "bed"))
    refused("are two spellings of one class", ds.load_tasks, "image_folder", tmp, "1shot")


def test_class_in_one_task_only(tmp):
    own(tmp); own(tmp, tasks=("art",), classes=("pen",))
    with pytest.warns(UserWarning, match="1 of 3 classes are in one task only: 'pen' in 'art'"):
        assert [t.n_classes for t in ds.load_tasks("image_folder", tmp, "1shot")] == [3, 2]


def test_empty_split(tmp):
    counts = domain_lists(tmp, DOMAINS, "splits", ("bed",))
    (tmp / "splits/sketch_test.txt").write_text("\n", encoding="utf-8")
    refused("sketch_test.txt names no file", ds.load_tasks, "domainnet", tmp, counts=counts)
    the_ten(tmp / "ten")
    path = tmp / "ten/dtd/split_zhou_DescribableTextures.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | dict(test=[])), encoding="utf-8"
    )
    refused("task 'dtd': the test part is empty", ds.load_tasks, "dtd", tmp / "ten", counts=False)
    own(tmp / "own", classes=("mug",))
    (tmp / "own/art/bed").mkdir()
    refused("class 'bed' has no images", ds.load_tasks, "image_folder", tmp / "own")


@pytest.mark.parametrize("line,why", [
    ("clipart/bed/none.jpg 0", "1 of 15 files are not in"),
    ("../../../etc/passwd 0", "leaves the folder"),
    ("/etc/passwd 0", "leaves the folder"),
    ("clipart/bed/x.jpg", "expected 'relative/path label'"),
    ("clipart/axe/x.jpg zero", "expected 'relative/path label'"),
])
def test_lists(tmp, line, why):
    domain_lists(tmp, DOMAINS, "splits", ("bed",))
    with open(tmp / "splits/clipart_train.txt", "a", encoding="utf-8") as f: f.write(line + "\n")
    refused(why, ds.load_tasks, "domainnet", tmp, counts=False)


def archive(path, members):
    with tarfile.open(path, "w") as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str): info.type, info.linkname = tarfile.SYMTYPE, data
            elif isinstance(data, tuple): info.linkname, info.type = data
            else: info.size = len(data)
            t.addfile(info, BytesIO(data) if isinstance(data, bytes) else None)
    return path


@pytest.mark.parametrize("members,why", [
    ({"art/1.png": b"x", "../evil": b"x"}, "leaves the folder"),
    ({"/abs/evil": b"x"}, "leaves the folder"),
    ({"art/link": "/etc"}, "is a link or a device"),
    ({"art/link": "1.png"}, "is a link or a device"),
    ({"art/1.png": b"x", "art/hard": ("art/1.png", tarfile.LNKTYPE)}, "is a link or a device"),
    ({"art/null": ("", tarfile.CHRTYPE)}, "is a link or a device"),
    ({"art/1.png": b"x", "Art/2.png": b"x"}, "holds 'art' and 'Art', which differ in case only"),
])
def test_archives(tmp, monkeypatch, members, why):
    served = serve(monkeypatch, archive(tmp / "evil.tar", members).parent)
    remote = RemoteFile(f"{served}/evil.tar", "evil.tar", file_hash(tmp / "evil.tar"), unpack="")
    refused(why, fetch_all, [remote], tmp / "root", progress=False)
    assert sorted(p.name for p in (tmp / "root").iterdir()) == ["evil.tar"] and not list(tmp.rglob("evil"))


def test_wrong_checksum(tmp, monkeypatch):
    served = serve(monkeypatch, pictures(tmp / "www", ["a.png"]))
    refused(
        "expected 0000000000000000000000000000000000000000000000000000000000000000; it was removed",
        fetch_all,
        [RemoteFile(f"{served}/a.png", "a.png", "0" * 64)],
        tmp / "root",
        progress=False,
    )
    assert not (tmp / "root").exists()


def test_full_disk(tmp, monkeypatch):
    served = serve(monkeypatch, archive(tmp / "a.tar", {f"art/{i}.png": b"x" * 100 for i in range(9)}).parent)

    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(
        "hipro_nb.datasets.fetch.shutil", SimpleNamespace(copyfileobj=full, rmtree=shutil.rmtree)
    )
    refused(
        "No space left on device",
        fetch_all,
        [RemoteFile(f"{served}/a.tar", "a.tar", file_hash(tmp / "a.tar"), unpack="")],
        tmp / "root",
        progress=False,
    )
    assert sorted(p.name for p in (tmp / "root").iterdir()) == ["a.tar"]


def serve(monkeypatch, folder):
    "A server of this machine; the network is open for it."
    from urllib.request import Request, build_opener

    monkeypatch.setattr(
        "hipro_nb.datasets.fetch.urlopen", lambda ask, timeout: build_opener().open(ask, timeout=timeout)
    )
    handler = type("Quiet", (SimpleHTTPRequestHandler,), dict(log_message=lambda *a: None))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def test_no_download_unasked(tmp):
    "The fixture fails on any request; every data set is asked for in an empty folder."
    for name in ds.list_datasets(): refused("", ds.load_tasks, name, tmp)
    refused("cannot be downloaded from here", ds.load_tasks, "office_home", tmp, download=True)
    refused("or ask for --download", ds.load_tasks, "cifar100", tmp)


def test_every_error_says_where_to_get_it(tmp):
    for name in ds.list_datasets():
        record = sources.find_dataset(name)
        with pytest.raises(BadData) as e: ds.load_tasks(name, tmp)
        assert name == "image_folder" or record.source in str(e.value), (name, str(e.value))


def test_import_is_light_and_silent():
    code = (
        "import sys, hipro_nb.datasets; sys.exit(' '.join(sorted({'torchvision', 'datasets', 'matplotlib',"
        " 'open_clip', 'pandas'} & sys.modules.keys())) or 0)"
    )
    status, out = run(sys.executable, "-c", code, cwd=ROOT)
    assert status == 0 and not out, f"import hipro_nb.datasets imports {out}"


def test_table_has_every_data_set():
    rows = ds.dataset_table().splitlines()[2:]
    assert len(rows) == len(ds.list_datasets())
    for row in rows:
        assert row.count(" | ") == 9 and not [c for c in row.strip("| ").split(" | ") if not c.strip()], row


def test_every_name_of_the_issue_is_known():
    for name in (
        "office_home domainnet minidomainnet cifar100 ten caltech101 oxford_pets stanford_cars oxford_flowers"
        " food101 fgvc_aircraft sun397 dtd eurosat ucf101 office_caltech10 pacs image_folder"
    ).split(): assert sources.find_dataset(name).name == name
