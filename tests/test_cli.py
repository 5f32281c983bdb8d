"The commands, as a user starts them: on tiny pictures, in processes of their own where that matters."

import importlib
import json
import shutil
import signal
import time
from importlib.metadata import entry_points

import pytest
import torch
from forked import Forked
from PIL import Image
from tiny import image_folder, save_clip

from hipro_nb.baselines import METHODS
from hipro_nb.cli import LOCK, SIZES, hipro_bench, hipro_fit, hipro_predict, load_run, read_results
from hipro_nb.compare import hipro_compare, read_table
from hipro_nb.files import load_tensors
from hipro_nb.method import Method, load_fitted

pytestmark = pytest.mark.xdist_group("cli")  # the process that makes the runs looks at them
NOTHING_LEARNED = dict(method="zero_shot", epochs=None, n_ctx=None)
COMMANDS = dict(
    hipro_demo="cli", hipro_fit="cli", hipro_predict="cli", hipro_bench="cli", hipro_compare="compare")


def command(name, *argv, **kw):
    "A command in a process of its own."
    return Forked(f"hipro_nb.{COMMANDS[name]}:{name}", [str(a) for a in argv], **kw)


def finished(p, status=0):
    found, out, err = p.wait()
    assert found == status, (found, out, err)
    assert "Traceback" not in err, err
    return out, err


def wait_for(p, home, pattern):
    "Until the process has written such a file, or has ended."
    for _ in range(2400):
        if list(home.glob(pattern)) or not p.is_running(): return
        time.sleep(0.05)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("cli")
    image_folder(home / "data")
    save_clip(home / "model")
    return home


def words(home, name="run", **kw):
    opts = dict(model=home / "model", shots=2, seeds=2, epochs=3, n_ctx=4, out=home / "runs", name=name) | kw
    return [str(home / "data")] + [
        str(w) for k, v in opts.items() if v is not None for w in (f"--{k.replace('_', '-')}", v)]


@pytest.fixture(scope="session")
def run(home):
    "A run of two seeds, made in this process."
    torch.set_num_threads(1)
    assert hipro_fit(words(home)) == 0
    return home / "runs" / "run"


def test_fit_leaves_everything(run):
    names = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    seed = {"model.safetensors", "classifiers.safetensors", "results.json", "affinity.png", "tree.svg"}
    assert names == {".lock", "run.json", "results.json", "results.md", "affinity.png", "tree.svg"} | {
        f"seed{s}/{f}" for s in (1, 2) for f in seed}
    results = read_results(run / "results.json")
    assert [r.method for r in results] == ["zero-shot", "CoOp", "CoOp-MTL", "Shr+Ind", "HiPro"]
    assert all(r.seeds == (1, 2) and r.tasks == ("art", "clip art", "photo") for r in results)
    text = (run / "results.md").read_text(encoding="utf-8")
    assert "**" in text and "95% interval" in text and "n = 2 runs" in text


def test_jscpt_says_what_each_task_does(home, capfd):
    argv = words(home, name="diagnosed", method="jscpt", epochs=6, seeds="1-2")
    assert hipro_fit(argv) == 0
    out = capfd.readouterr().out
    written = (home / "runs" / "diagnosed" / "diagnosis.txt").read_text(encoding="utf-8")
    assert written in out and "influence of each task on the held-out loss" in written
    assert "2 seeds" in written and "interval" in written.splitlines()[0]


def test_fused_classifiers_are_plain_tensors(run):
    heads, meta = load_tensors(run / "seed1" / "classifiers.safetensors")
    fitted = load_fitted(run / "seed1" / "model.safetensors")
    assert set(heads) == {"art", "clip art", "photo"} and meta["classnames"]["art"] == [
        "apple", "plum", "red pear"]
    for t, w in heads.items():
        assert w.shape == (3, 32) and torch.equal(w, fitted.weights(t))


def test_results_can_be_recomputed_from_the_files(run, home):
    "The stored classifiers give the stored accuracies."
    from hipro_nb.folders import load_image_folder

    best = read_results(run / "results.json")[-1]
    for s, row in zip(best.seeds, best.accuracy):
        tasks = load_image_folder(home / "data", shots=2, seed=s)
        again = load_run(run, s).evaluate(tasks)
        assert again.accuracy[0] == pytest.approx(row)


def test_an_existing_run_is_refused(run, home, capfd):
    def times(): return {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.name != LOCK} # taken to look
    before = times()
    assert hipro_fit(words(home)) == 2
    out, err = capfd.readouterr()
    assert "holds a run already" in err and "--resume" in err and out == ""
    assert before == times()


def test_resume_keeps_finished_seeds_and_refuses_other_settings(run, home, capfd):
    kept = (run / "seed1" / "model.safetensors").read_bytes()
    assert hipro_fit(words(home, seeds=2) + ["--resume"]) == 0
    assert "\nseed 1: finished before\nseed 2: finished before\n" in capfd.readouterr().out
    assert kept == (run / "seed1" / "model.safetensors").read_bytes()
    assert hipro_fit(words(home, lr=0.5) + ["--resume"]) == 2
    assert "settings.lr was 0.001, is 0.5" in capfd.readouterr().err
    assert hipro_fit(words(home, shots=1) + ["--resume"]) == 2
    assert "settings.shots was 2, is 1" in capfd.readouterr().err


def test_resume_with_other_seeds_adds_them(home, capfd):
    argv = dict(name="grown", method="coop_mtl", epochs=2)
    assert hipro_fit(words(home, seeds="1-1", **argv)) == 0
    assert hipro_fit(words(home, seeds="2-2", **argv) + ["--resume"]) == 0
    assert [r.seeds for r in read_results(home / "runs" / "grown" / "results.json")] == [(1, 2)] * 2
    assert capfd.readouterr().out.startswith("3 tasks, 3 classes, 18 images to learn from, ")


def test_a_renamed_model_is_the_same_model(home, tmp_path, capfd):
    "A run goes on with it, and its features are those of the store."
    shutil.copytree(home / "model", tmp_path / "first")
    made = dict(out=tmp_path, store=tmp_path / "store", method="coop_mtl", epochs=1, n_ctx=2)
    assert hipro_fit(words(home, model=tmp_path / "first", seeds=1, **made)) == 0
    (tmp_path / "first").rename(tmp_path / "second")
    stored = sorted((tmp_path / "store").rglob("*.safetensors"))
    seeds = "1,2"
    assert hipro_fit([*words(home, model=tmp_path / "second", seeds=seeds, **made), "--resume"]) == 0
    assert "seed 1: finished before" in capfd.readouterr().out
    assert sorted((tmp_path / "store").rglob("*.safetensors")) == stored, "pictures were encoded again"
    assert load_run(tmp_path / "run")


def test_runs_stay_out_of_the_data(home, capfd, monkeypatch):
    monkeypatch.chdir(home / "data")
    assert hipro_fit([".", "--model", str(home / "model"), "--shots", "1"]) == 2
    assert "--out runs lies inside " in capfd.readouterr().err and not (home / "data" / "runs").exists()


def test_predict_refuses_large_images(run, home, capfd, monkeypatch):
    "From the command line's limit on, which holds for the whole process."
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back at the end
    Image.new("RGB", (1001, 1000)).save(home / "large.png")
    argv = [str(run), str(home / "large.png"), "--max-pixels"]
    assert hipro_predict([*argv, "1000000"]) == 2
    assert "large.png (has 1001 x 1000 pixels; expected at most 1,000,000" in capfd.readouterr().err
    assert hipro_predict([*argv, "1001000"]) == 0
    assert hipro_predict([*argv, "999"]) == 2
    assert "--max-pixels 999: expected at least 1000000" in capfd.readouterr().err


def test_predict_says_what_is_no_image(run, home, capfd):
    assert hipro_predict([str(run), str(home / "none.png")]) == 2
    assert "none.png: no such file; expected an image" in capfd.readouterr().err
    assert hipro_predict([str(run), str(home / "data")]) == 2
    assert "data: a folder; expected an image" in capfd.readouterr().err


def test_embedded_data_bring_their_settings():
    from hipro_nb.cli import usual_training
    from hipro_nb.mini import MINI_TRAIN

    assert usual_training("mini-families", lr=None) == MINI_TRAIN and usual_training(
        "photos", lr=0.5, epochs=None) == dict(lr=0.5, epochs=100, batch_size=20)


def test_a_killed_run_resumes_to_identical_results(home):
    """Ctrl-C in the middle of a process's training: exit 130, a word on how to go on, and the same bits in
    the end."""
    slow = dict(seeds="5-5", epochs=240, name="killed", method="shr_ind")
    p = command("hipro_fit", *words(home, **slow))
    part = home / "runs" / "killed" / "seed5" / "checkpoint" / "nodes.safetensors"
    wait_for(p, home, "runs/killed/seed5/checkpoint/nodes.safetensors")
    p.send_signal(signal.SIGINT)
    out, err = finished(p, 130)
    assert "interrupted" in err and "--resume" in err
    assert part.exists() and not (home / "runs" / "killed" / "seed5" / "results.json").exists()
    assert hipro_fit(words(home, **slow) + ["--resume"]) == 0
    assert hipro_fit(words(home, **slow | dict(name="whole"))) == 0
    a, b = (load_tensors(home / "runs" / n / "seed5" / "model.safetensors")[0] for n in ("killed", "whole"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    a, b = (read_results(home / "runs" / n / "results.json") for n in ("killed", "whole"))
    assert [r.accuracy for r in a] == [r.accuracy for r in b]


def test_predict_in_a_new_process(run, home):
    image = home / "data" / "photo" / "plum" / "0.png"
    p = command("hipro_predict", run, image, "--json", cwd=home)
    q = command("hipro_predict", run, image, "--task", "photo", "--top", "1", cwd=home)
    found = json.loads(finished(p)[0])
    assert [f["task"] for f in found] == ["art", "clip art", "photo"]
    fitted = load_run(run)
    for f in found:
        probs = fitted.predict(f["task"], [image]).probs[0]
        names = fitted.classnames[fitted.index(f["task"])]
        assert f["image"] == str(image) and len(f["names"]) == 3
        for n in f["names"]:
            assert n["probability"] == pytest.approx(float(probs[names.index(n["name"])]), abs=1e-5)
    line = finished(q)[0]
    best = found[2]["names"][0]
    assert line == f"{image}  photo: {best['name']} {100 * best['probability']:.1f}%\n"


def test_predict_refuses(run, home, capfd):
    image = str(home / "data" / "photo" / "plum" / "0.png")
    (home / "notes.txt").write_text("x", encoding="utf-8")
    other = save_clip(home / "other", seed=1)
    for argv, parts in (
        ([str(run), str(home / "none.png")], ("none.png",)),
        ([str(run), str(home / "notes.txt")], ("notes.txt", "unreadable")),
        ([str(home), image], ("holds no run",)),
        ([str(run), image, "--task", "music"], ("'music'", "art, clip art, photo")),
        ([str(run), image, "--seed", "7"], ("seed 7", "1, 2")),
        ([str(run), image, "--model", str(other)], ("was made with model model", "not with other")),
    ):
        assert hipro_predict(argv) == 2
        err = capfd.readouterr().err
        assert err.startswith("hipro_predict: ") and all(p in err for p in parts), err
        assert "--skip-bad-images" not in err, "an option that hipro_predict does not have"


def test_predict_when_the_model_moved(run, home, tmp_path):
    shutil.copytree(home / "model", tmp_path / "model")
    image = str(home / "data" / "photo" / "plum" / "0.png")
    assert hipro_predict([str(run), image, "--model", str(tmp_path / "model")]) == 0


@pytest.fixture(scope="session")
def coop(home):
    "CoOp trained alone."
    assert hipro_fit(words(home, name="coop", method="coop", seeds=1)) == 0
    return home / "runs" / "coop"


@pytest.mark.parametrize("method,names", [
    ("zero_shot", ["zero-shot"]),
    ("coop_mtl", ["zero-shot", "CoOp-MTL"]),
    ("shr_ind", ["zero-shot", "Shr+Ind"]),
])
def test_other_methods(home, method, names, capfd):
    options = NOTHING_LEARNED if method == "zero_shot" else {}
    assert hipro_fit(words(home, **dict(name=method, method=method, seeds=1) | options)) == 0
    assert [r.method for r in read_results(home / "runs" / method / "results.json")] == names
    image = str(home / "data" / "photo" / "plum" / "0.png")
    assert hipro_predict([str(home / "runs" / method), image, "--task", "photo"]) == 0


def test_the_whole_table_holds_what_the_methods_give_alone(run, coop):
    "CoOp out of HiPro's run is CoOp trained alone."
    whole, alone = ({r.method: r for r in read_results(d / "results.json")} for d in (run, coop))
    assert list(alone) == ["zero-shot", "CoOp"]
    a = load_fitted(run / "seed1" / "model.safetensors", load_run(run).clip).select("leaf")
    b = load_fitted(coop / "seed1" / "model.safetensors")
    for t in a.names:
        torch.testing.assert_close(a.weights(t), b.weights(t), rtol=1e-3, atol=1e-4)
    assert whole["zero-shot"].accuracy[0] == alone["zero-shot"].accuracy[0]


def test_one_task_says_that_it_is_coop(home, tmp_path, capfd):
    image_folder(tmp_path / "data", tasks=("art",))
    assert hipro_fit([str(tmp_path / "data"), *words(home, seeds=1, out=tmp_path)[1:]]) == 0
    out, err = capfd.readouterr()
    assert "one task only (art): HiPro is then CoOp" in err and "HiPro" in out


def test_skip_bad_images(home, tmp_path, capfd):
    data = image_folder(tmp_path / "data")
    (data / "art" / "plum" / "1.png").write_text("not a picture", encoding="utf-8")
    argv = [str(data), *words(home, seeds=2, out=tmp_path, method="coop")[1:]]
    assert hipro_fit(argv) == 2
    err = capfd.readouterr().err
    assert "art/plum/1.png" in err and "skip" in err
    assert hipro_fit(argv + ["--skip-bad-images"]) == 0
    assert "skipped 1 unreadable images: art/plum/1.png" in capfd.readouterr().err


def test_train_list_and_fraction(home, tmp_path, capfd):
    lists = {
        t: [f"{c}/{i}.png" for c in ("apple", "plum", "red pear") for i in (0, 1)]
        for t in ("art", "clip art", "photo")}
    (tmp_path / "list.json").write_text(json.dumps({"10": lists}), encoding="utf-8")
    argv = words(home, shots=None, train_list=tmp_path / "list.json", fraction=0.1, seeds=1,
                 **NOTHING_LEARNED, out=tmp_path)
    assert hipro_fit(argv) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["tasks"][0]["images"] == dict(train=6, test=9)


@pytest.mark.parametrize("bf16", ["yes", "no"])
def test_bench(tmp_path, capfd, monkeypatch, bf16):
    """With units for bf16 and without, which is said here and not found out; what was measured is printed as
    it is stored."""
    monkeypatch.setitem(SIZES, "small", [])
    parts = "tower,affinity,memory" if bf16 == "no" else "tower"
    assert (
        hipro_bench(["--quick", "--rounds", "1", "--bf16", bf16, "--parts", parts, "--out", str(tmp_path)])
        == 0)
    found, out = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8")), capfd.readouterr().out
    tower = found["tower"]["found"]
    assert (tower["classes"], tower["bf16_is_faster"], "bfloat16" in tower["ways"]) == (
        65, bf16 == "yes", bf16 == "yes")
    assert f"{tower['ways']['float32']['ratio']:.1f} times faster" in out and ("emulates it" in out) == (
        bf16 == "no")
    if bf16 == "yes": return
    assert [a["tasks"] for a in found["affinity"]["found"]] == [4, 20] and found["affinity"]["facts"][
        "versions"]["torch"]
    (row,) = found["memory"]["found"]
    assert (row["classes"], row["nodes"], row["dtype"]) == (65, 1, None)
    assert row["peak_mib"] > 1 and f"peak {row['peak_mib']:.0f} MiB" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as e:
        getattr(importlib.import_module(f"hipro_nb.{COMMANDS[name]}"), name)(["--help"])
    assert e.value.code == 0 and f"usage: {name}" in capsys.readouterr().out


def test_console_scripts_are_these_functions():
    ours = {e.name: e.value for e in entry_points(group="console_scripts") if e.value.startswith("hipro_nb.")}
    assert ours == {n: f"hipro_nb.{m}:{n}" for n, m in COMMANDS.items()}
    assert all(callable(getattr(importlib.import_module(f"hipro_nb.{m}"), n)) for n, m in COMMANDS.items())


def test_a_method_on_the_image_side(home, capfd):
    """Visual prompts see images: no linear classifier is written, and images are predicted from the stored
    prompts."""
    assert hipro_fit(words(home, name="vpt", method="vpt", seeds=1, epochs=1, n_ctx=None)) == 0
    folder = home / "runs" / "vpt"
    assert (
        not (folder / "seed1" / "classifiers.safetensors").exists()
        and (folder / "seed1" / "model.safetensors").exists())
    out, err = finished(
        command(
            "hipro_predict", folder, home / "data" / "photo" / "plum" / "0.png", "--task", "photo", "--json"))
    probs = load_run(folder).predict("photo", [home / "data" / "photo" / "plum" / "0.png"]).probs[0]
    assert [n["probability"] for n in json.loads(out)[0]["names"]] == pytest.approx(
        sorted(probs.tolist(), reverse=True), abs=1e-5)


def test_a_data_set_by_its_name(home, tmp_path, capfd):
    "Ten classes of three pictures are not the published numbers: refused, unless asked for."
    names = "backpack bike calculator headphones keyboard laptop_computer monitor mouse mug projector".split()
    image_folder(tmp_path / "office_caltech10", ("amazon", "caltech", "dslr", "webcam"), names, n=3)
    argv = ["office_caltech10", "--root", str(tmp_path),
            *words(home, shots=1, seeds=1, **NOTHING_LEARNED, out=tmp_path / "runs")[1:]]
    assert hipro_fit(argv) == 2
    assert "office" in capfd.readouterr().err.lower() and not (tmp_path / "runs").exists()
    assert hipro_fit(argv + ["--any-counts"]) == 0
    record = json.loads((tmp_path / "runs" / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["settings"]["data"] == "office_caltech10" and [t["name"] for t in record["tasks"]] == [
        "amazon", "caltech", "dslr", "webcam"]
    assert hipro_fit(["office_caltech10", "--method", "zero_shot"]) == 2
    assert "expected --root" in capfd.readouterr().err


@pytest.fixture(scope="session")
def comparison(home):
    "Every method of the registry, one seed, in this process."
    torch.set_num_threads(1)
    argv = words(home, seeds=1, epochs=1, n_ctx=2, name=None, out=home / "compared")
    assert hipro_compare([*argv, "--methods", "all"]) == 0
    (folder,) = (home / "compared").glob("data-*")
    return argv, folder


def test_compare_runs_every_method(comparison):
    _, folder = comparison
    table = read_table(folder / "table.json")
    assert list(table.results) == list(METHODS) and not table.left_out
    assert all(r.seeds == (1,) and r.tasks == ("art", "clip art", "photo") for r in table.results.values())
    assert all(
        (c["parameters"] > 0) == (n != "zero_shot") and c["seconds"] >= 0 for n, c in table.costs.items()
    ), table.costs
    assert {n for n, c in table.costs.items() if c["trained_with"]} == {"coop", "coop_mtl", "shr_ind"}
    assert set(table.gains) == set(METHODS) - {"hipro"} and all(
        g["images"].low <= g["images"].mean <= g["images"].high for g in table.gains.values())
    for end in ("md", "tex", "csv"):
        text = (folder / f"table.{end}").read_text(encoding="utf-8")
        assert all(r.method in text for r in table.results.values()) and str(folder.parent) not in text


def test_compare_keeps_what_is_finished(comparison, capfd):
    argv, folder = comparison
    before = {p: p.read_bytes() for p in folder.glob("*/seed1/*")}
    assert hipro_compare([*argv, "--methods", "coop,hipro"]) == 0
    assert "seed 1: finished before" in capfd.readouterr().out
    assert before == {p: p.read_bytes() for p in folder.glob("*/seed1/*")}
    assert list(read_table(folder / "table.json").results) == ["coop", "hipro"]


def test_a_report_that_cannot_be_written_is_told_first(home, tmp_path, capfd):
    (tmp_path / "there").mkdir()
    assert (
        hipro_compare(
            [*words(home, seeds=1, name=None, out=tmp_path / "runs"), "--methods", "coop", "--report",
             str(tmp_path / "there")])
        == 2)
    assert (
        "there is a folder; expected the name of a file" in capfd.readouterr().err
        and not (tmp_path / "runs").exists())


@pytest.mark.parametrize("hipro", (hipro_fit, hipro_compare), ids=("fit", "compare"))
def test_a_store_that_is_a_file_is_told_first(home, tmp_path, capfd, hipro):
    (tmp_path / "store").write_text("a letter", encoding="utf-8")
    assert (
        hipro([*words(home, seeds=1, name=None, out=tmp_path / "runs"), "--store", str(tmp_path / "store")])
        == 2)
    assert "store is not a folder" in capfd.readouterr().err and not (tmp_path / "runs").exists()


def test_compare_in_a_process_that_is_killed(home, capfd):
    """SIGKILL in the middle of HiPro's training: the same command goes on from the checkpoint, to the
    classifiers of an undisturbed run."""
    argv = words(home, seeds=1, epochs=240, name=None, out=home / "stopped") + [
        "--methods", "zero_shot,shr_ind", "--jobs", "0"]
    p = command("hipro_compare", *argv)
    wait_for(p, home, "stopped/data-*/shr_ind/seed1/checkpoint/nodes.safetensors")
    p.send_signal(signal.SIGKILL)
    assert p.wait()[0] == -signal.SIGKILL
    assert list((home / "stopped").glob("data-*/zero_shot/seed1/results.json")) and not list(
        (home / "stopped").glob("data-*/shr_ind/seed1/results.json"))
    assert hipro_compare(argv) == 0
    assert "≥" in capfd.readouterr().out
    assert hipro_compare([w.replace("stopped", "whole") for w in argv]) == 0
    a, b = (
        load_tensors(next((home / d).glob("data-*/shr_ind/seed1/model.safetensors")))[0]
        for d in ("stopped", "whole"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_compare_leaves_out_what_cannot_run(home, tmp_path, capfd, monkeypatch):
    """With all, a method that cannot run is left out and the table says why; by its name it is an error
    before anything is written."""
    class Needy(Method):
        requires = ("no_such_package",)

    few = dict(zero_shot=METHODS["zero_shot"], hipro=METHODS["hipro"], needy=Needy)
    for module in ("cli", "compare"): monkeypatch.setattr(f"hipro_nb.{module}.METHODS", few)
    argv = words(home, seeds=1, name=None, out=tmp_path / "runs")
    assert hipro_compare([*argv, "--methods", "hipro,needy"]) == 2
    assert (
        "needy cannot be run: it needs the package no_such_package" in capfd.readouterr().err
        and not (tmp_path / "runs").exists())
    assert hipro_compare(argv) == 0
    assert "Left out: needy (it needs the package no_such_package" in capfd.readouterr().out
