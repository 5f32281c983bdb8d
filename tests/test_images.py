"""Pictures as strangers send them: every form is taken as what it is or refused by name, nothing that the
caller owns is closed, and no file costs more memory or time than a picture is worth."""

import io
import math
import os
import resource
import socket
import struct
import tempfile
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
from forked import Forked
from hypothesis import HealthCheck, example, given, settings
from PIL import Image
from project import ROOT
from test_predict import fitted
from tiny import coloured
from torch.utils.data import DataLoader

import hipro_nb.images
from hipro_nb.tasks import BadData, Features, Task
from hipro_nb.store import FeatureStore
from hipro_nb.images import Split, as_images, bad_images, each_image, image_hash, open_image

FORMATS = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "BMP": "bmp", "WEBP": "webp", "TIFF": "tif",
           "PPM": "ppm", "JPEG2000": "jp2", "AVIF": "avif"}
PICTURES = [coloured(i, i) for i in range(3)]


@pytest.fixture
def files(tmp_path):
    for i, o in enumerate(PICTURES): o.save(tmp_path / f"{i}.png")
    return [tmp_path / f"{i}.png" for i in range(3)]


def pixels(images): return [np.asarray(open_image(o)).tolist() for o in as_images(images)]


def encoded(form="PNG", image=PICTURES[0], **kw):
    f = io.BytesIO()
    image.copy().save(f, form, **kw)  # saving leaves its marks on a picture
    return f.getvalue()


class Pairs:
    "A data set as PyTorch has it: pictures with labels, by number."
    def __len__(self): return 3
    def __getitem__(self, i):
        if i >= 3: raise IndexError
        return PICTURES[i], i


def many(files):
    "Three pictures in every form that many come in."
    arrays = np.stack([np.asarray(o) for o in PICTURES])
    batch = torch.tensor(arrays).permute(0, 3, 1, 2)
    yield from (files, tuple(map(str, files)), (f for f in files), files[0].parent.glob("*.png"),
                os.scandir(files[0].parent))
    yield from (map(Image.open, files), [f.read_bytes() for f in files],
                [bytearray(f.read_bytes()) for f in files])
    yield from ([{"bytes": f.read_bytes(), "path": None} for f in files],
                [dict(bytes=None, path=str(f)) for f in files])
    yield from (pd.Series(list(map(str, files))), pd.Series(PICTURES), pd.Index(list(map(str, files))))
    yield from (np.array(list(map(str, files))), np.array(list(map(str, files)), dtype=object),
                pd.DataFrame(dict(file=files))["file"])
    yield from (arrays, torch.tensor(arrays), batch, batch / 255, batch.double() / 255,
                (batch / 255).requires_grad_(), list(batch), arrays / 255)
    yield from (Pairs(), list(Pairs()), [batch, torch.arange(3)], (batch / 255, np.arange(3)),
                [(o, torch.tensor(1)) for o in PICTURES])
    yield from (Split(PICTURES, [0] * 3), Split(arrays, [0] * 3),
                DataLoader(list(zip(batch / 255, range(3))), batch_size=2),
                {i: o for i, o in enumerate(PICTURES)}.values())


def test_many_pictures(files):
    right = pixels(PICTURES)
    forms = list(many(files))
    for i, images in enumerate(forms):
        ordered = sorted(images, key=lambda o: o.name) if i in (3, 4) else images  # a folder has no order
        assert pixels(ordered) == right, f"form {i}"
    assert (
        pixels([torch.tensor(np.asarray(o)) for o in PICTURES[:2]] + [files[2]]) == right
    ), "forms may be mixed"


def test_one_picture(files):
    image, raw = PICTURES[0], files[0].read_bytes()
    array = np.asarray(image)
    forms = [image, files[0], str(files[0]), raw, bytearray(raw), memoryview(raw), io.BytesIO(raw), array,
             torch.tensor(array), array.transpose(2, 0, 1), torch.tensor(array).permute(2, 0, 1) / 255,
             dict(bytes=raw, path="x"), (image, 3), (array, np.int64(3))]
    for i, o in enumerate(forms): assert pixels(o) == pixels([image]) and len(as_images(o)) == 1, f"form {i}"
    grey = np.asarray(image.convert("L"))
    for o in (grey, grey[..., None], grey[None], torch.tensor(grey), grey[None] / 255,
              grey[..., None].astype(np.float32) / 255):
        assert pixels(o) == pixels([Image.fromarray(grey)]), "one grey picture"
    clear = np.dstack([array, np.full(array.shape[:2], 128, np.uint8)])
    for o in (clear, clear.transpose(2, 0, 1)): assert pixels(o) == pixels([Image.fromarray(clear)])
    deep = (grey.astype(np.uint16) * 257)
    assert pixels(deep) == pixels(grey) and pixels(np.dstack([array.astype(np.uint16) * 257])) == pixels(
        array)
    assert pixels(grey > 99) == pixels((grey > 99) * np.uint8(255))


def test_which_axis_holds_the_channels():
    "Where both ends fit, the last one; the first one where it alone fits."
    both, x = np.zeros((3, 9, 3), np.uint8), np.zeros((3, 9, 8), np.uint8)
    both[0], x[0] = 255, 255
    assert open_image(both).size == (9, 3) and open_image(both).getpixel((0, 0)) == (255,) * 3
    assert open_image(x).size == (8, 9) and open_image(x).getpixel((0, 0)) == (255, 0, 0)


ODD = [7, np.int64(7), np.uint8(7), True, None, 1.5, math.nan, 1j, object(), int, len, {}, {"image": 1},
       {1, 2}, [1], [None], [[PICTURES[0]]], [["a.png", "b.png"], ["c.png"]], torch.tensor(7),
       torch.arange(3), torch.ones(3), torch.ones(3, 4), torch.zeros(5, 6, 7), torch.zeros(1, 2, 3, 4, 5),
       np.zeros((5, 28, 28), np.uint8), np.zeros((0, 3), np.uint8), np.zeros((5, 5, 2), np.uint8),
       np.zeros((4, 4), np.int64), np.zeros((4, 4), complex), np.array([object()]),
       np.zeros((4, 4), "datetime64[s]"), np.full((4, 4, 3), 1.5), np.full((4, 4, 3), np.nan),
       torch.randn(2, 3, 8, 8), torch.zeros(4, 4, 3, dtype=torch.int32), torch.zeros(3, 4, 3).to_sparse(),
       torch.zeros(3, 4, 3, device="meta"), pd.DataFrame(dict(a=[1])), pd.Series([1.0, math.nan]),
       Features(torch.eye(3), [0] * 3), [torch.ones(4)],
       Task("t", ["a", "b"], Split(PICTURES[:2], [0, 1]), Split(PICTURES[:2], [0, 1])), io.StringIO("text"),
       (1, 2), [PICTURES[0], 3.5], range(3)]


@pytest.mark.parametrize("i", range(len(ODD)))
def test_what_is_refused(i):
    with pytest.raises(BadData) as e: as_images(ODD[i])
    said = str(e.value)
    assert "expected" in said and len(said) < 500 and "\n" not in said
    for f in (bad_images, lambda o: Split(o, [0]),
              lambda o: FeatureStore().features(SimpleNamespace(embed_dim=3), o)):
        with pytest.raises(BadData): f(ODD[i])
    if getattr(ODD[i], "shape", None) != (3, 4):  # by itself, that is a grey picture
        with pytest.raises(BadData): open_image(ODD[i])


def test_what_a_caller_owns_stays_open(files, tmp_path):
    "An integer is no file descriptor, and a file that was handed in can be read on."
    ends = os.pipe()
    for i in (*ends, 0, 1, 2):
        for o in (i, [i], np.int64(i)):
            with pytest.raises(BadData, match="int"): as_images(o)
    assert os.fstat(ends[0]) and os.fstat(ends[1]) and os.fstat(1)
    for e in ends: os.close(e)
    raw = files[0].read_bytes()
    with (tempfile.NamedTemporaryFile() as named, open(files[0], "rb") as f,
          open(files[0], "rb", buffering=0) as plain):
        named.write(raw), named.flush()
        for o in (f, plain, named, io.BytesIO(raw)):
            o.seek(11)
            for _ in range(2): assert pixels(o) == pixels(PICTURES[0])
            assert not o.closed and o.tell() == 11 and o.read(3) == raw[11:14]
    with open(files[0], "rb") as f: pass
    with pytest.raises(BadData, match="closed file"): as_images(f)
    with open(files[0], encoding="latin1") as f, pytest.raises(BadData, match="binary mode"): as_images(f)
    with open(tmp_path / "w", "wb") as f, pytest.raises(BadData, match="not readable|read"): as_images(f)
    stream = os.pipe()
    with os.fdopen(stream[0], "rb") as r, os.fdopen(stream[1], "wb") as w:
        w.write(raw), w.close()
        assert (
            pixels(r) == pixels(PICTURES[0]) and not r.closed
        ), "what cannot be wound back is read on from where it is"


def test_no_endless_stream(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    with open("/dev/zero", "rb") as f, pytest.raises(BadData, match="more bytes"): as_images(f)


def test_special_files(tmp_path):
    "Named, and not opened: a FIFO would wait for ever."
    os.mkfifo(tmp_path / "fifo.png")
    with socket.socket(socket.AF_UNIX) as s: s.bind(str(tmp_path / "socket.png"))
    for name, to in dict(device="/dev/zero", link="fifo.png", folder=".").items():
        (tmp_path / f"{name}.png").symlink_to(to)
    names = ["fifo.png", "socket.png", "device.png", "link.png", "folder.png"]
    kinds = ["a FIFO", "a socket", "a device", "a FIFO", "a folder"]
    for n, kind in zip(names, kinds):
        for f in (open_image, image_hash):
            with pytest.raises(BadData, match=f"{n} is {kind}"): f(tmp_path / n)
    assert [t.split(":")[0] for t in bad_images([tmp_path / n for n in names]).values()] == [
        f"is {k}" for k in kinds]


def bare_png(width, height, rows=None):
    """A grey PNG of 16 bits and one value, a thousandth of its pixels in size; the file may end after some
    rows."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = zlib.compressobj(9)
    body = (
        b"".join(row.compress(b"\0" * (1 + 2 * width)) for _ in range(height if rows is None else rows))
        + row.flush())
    head = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_too_many_pixels(tmp_path, monkeypatch):
    "Refused from the header: the file behind it is not even there."
    (tmp_path / "large.png").write_bytes(bare_png(13_000, 13_000, rows=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(BadData, match="large.png has 13000 x 13000 pixels; expected at most 89,478,485"):
            open_image(tmp_path / "large.png")
        assert "has 13000 x 13000" in bad_images([tmp_path / "large.png"])[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    with pytest.raises(BadData, match="at most 99"): open_image(encoded(image=PICTURES[0].resize((10, 11))))
    assert open_image(encoded(image=PICTURES[0].resize((9, 11)))).size == (9, 11)
    (tmp_path / "long.png").write_bytes(encoded(image=PICTURES[0].resize((9, 9))) + b"\0" * 2**21)
    with pytest.raises(BadData, match="long.png has 2,0.* bytes"): open_image(tmp_path / "long.png")


def test_room():
    """However many threads decode, no more pixels than the limit are in decoding, but for one picture that is
    larger."""
    room, inside, most = hipro_nb.images._Room(), [], []
    def visit(n):
        with room(n, 100):
            inside.append(n), most.append(sum(inside))
            inside.remove(n)
    with ThreadPoolExecutor(8) as pool: list(pool.map(visit, [30, 60, 10, 250, 40] * 40))
    assert max(p for p in most if p != 250) <= 100 and 250 in most and room.used == 0


def decode_in_eight_threads(path):
    "Peak memory of eight threads that open one large picture each, in MB above what was there."
    open_image(PICTURES[0])
    before = peak()
    with ThreadPoolExecutor(8) as pool:
        assert {o for o in pool.map(lambda _: open_image(path).size, range(8))} == {(4000, 5000)}
    return 0 if peak() - before < 8 * 20 * 4 + 250 else 1


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_pages_are_not_counted(tmp_path, monkeypatch):
    "A file of many pages is one picture; whoever counts them walks through all."
    for n in ("pages.tif", "frames.gif"):
        first, *rest = (o.copy() for o in PICTURES)
        first.save(tmp_path / n, save_all=True, append_images=rest)
    for n, kind in (("pages.tif", "Tiff"), ("frames.gif", "Gif")):
        module = __import__(f"PIL.{kind}ImagePlugin", fromlist=["x"])
        monkeypatch.setattr(
            getattr(module, f"{kind}ImageFile"), "n_frames", property(lambda self: pytest.fail("counted")))
        with pytest.warns(UserWarning, match="several pages"):
            assert open_image(tmp_path / n).size == PICTURES[0].size


def test_only_formats_of_pictures(tmp_path):
    "What Pillow would hand to Ghostscript, or to a stub, is not opened; pictures are, whatever their name."
    for form, ending in FORMATS.items():
        if form in ("AVIF", "JPEG2000", "WEBP") and ending not in str(Image.registered_extensions()): continue
        (tmp_path / f"as_{ending}.dat").write_bytes(encoded(form))
        assert open_image(tmp_path / f"as_{ending}.dat").size == PICTURES[0].size
    eps = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(%pipe%touch /tmp/owned) (w)"
        b" file\n")
    for raw in (eps, encoded("TGA"), encoded("PCX"), encoded("SGI"),
                encoded("ICO", PICTURES[0].resize((16, 16)))):
        with pytest.raises(BadData, match="cannot identify"): open_image(raw)


def test_labels_and_features_of_odd_kinds():
    for labels in (None, 3, "abc", [0, [1]], [0.5], {0}, torch.zeros(3), torch.zeros(1, 3, dtype=torch.int64),
                   [True] * 3, object()):
        for f in (lambda y: Split(PICTURES, y), lambda y: Features(torch.eye(3), y)):
            with pytest.raises(BadData, match="labels"): f(labels)
    for x in (None, 3, "abc", [[1, 2], [3]], torch.ones(3), torch.ones(3, 3, dtype=torch.complex64),
              torch.eye(3).to_sparse(), object(), PICTURES):
        with pytest.raises(BadData, match="features"): Features(x, [0] * 3)
    part = Split(PICTURES, [0, 1, 0])
    for names in (None, 3, "ab", ["a", 3], ["a", ""], ["a", "a"], {}):
        with pytest.raises(BadData): Task("t", names, part, part)
    for name in (None, 3, "", "_"):
        with pytest.raises(BadData): Task(name, ["a", "b"], part, part)
    for odd in (None, 3, "train", PICTURES, [part]):
        with pytest.raises(BadData, match="expected a Split or Features"): Task("t", ["a", "b"], odd, part)
        with pytest.raises(BadData, match="expected a Split or Features"): Task("t", ["a", "b"], part, odd)
    for idx in ([3], [-4], [.5], "a", None, [[0]]):
        with pytest.raises(BadData): part.subset(idx)
    assert Task("t", (n for n in "ab"), part, part).classnames == ("a", "b")


# Damage: any file of a known format, cut, with bytes changed, or with others put in between; or no format at
# all.
WHOLE = [encoded(f) for f in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM")] + [
    encoded("PNG", PICTURES[0].convert(m)) for m in ("L", "P", "1", "I;16", "RGBA")]
WHOLE += [encoded("TIFF", save_all=True, append_images=PICTURES[1:]),
          encoded("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")]


@st.composite
def damaged(draw):
    raw = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(0, 4))):
        if not raw: break
        at = draw(
            st.integers(0, min(len(raw) - 1, 200)) if draw(st.booleans()) else st.integers(0, len(raw) - 1))
        how, more = draw(st.sampled_from("set cut put drop".split())), draw(st.binary(max_size=6))
        if how == "set":raw[at:at + len(more)] = more
        elif how == "put":raw[at:at] = more
        elif how == "drop":del raw[at:at + 5]
        elif at: del raw[at:]
    return bytes(raw)


def is_taken_or_refused(raw):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: im = open_image(raw)
        except BadData as e: assert len(str(e)) < 2000 and "\n" not in str(e)
        else:
            assert im.mode == "RGB" and min(im.size) > 0 and len(im.tobytes()) == 3 * im.size[0] * im.size[1]
        assert set(bad_images([raw])) <= {0}


QUIET = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)


@settings(max_examples=300, **QUIET)
@given(st.one_of(damaged(), st.binary(max_size=300)))
def test_damaged_pictures(raw): is_taken_or_refused(raw)


@pytest.mark.slow
@settings(max_examples=20_000, **QUIET)
@given(st.one_of(damaged(), st.binary(max_size=300)))
def test_many_damaged_pictures(raw): is_taken_or_refused(raw)


METHOD = cache(fitted)


@settings(max_examples=40, **QUIET)
@given(st.lists(st.one_of(damaged(), st.binary(max_size=30), st.sampled_from(WHOLE)), max_size=4))
def test_damaged_pictures_to_classify(images):
    """An answer for each picture, or all unreadable ones by their numbers; and a store beside it says the
    same."""
    method = METHOD()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad = bad_images(images)
        for f in (lambda: method.predict(0, images).probs,
                  lambda: FeatureStore().features(method.clip, images, progress=False)):
            try: got = f()
            except BadData as e: assert bad and all(f"image {i} (" in str(e) for i in bad)
            else: assert not bad and len(got) == len(images) and got.isfinite().all()


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=20),
    st.complex_numbers(),
    st.sampled_from(
        [PICTURES[0], Path("none.png"), object(), io.BytesIO(b"x"), np.float32(1), torch.tensor(3), Ellipsis,
         str]))
SHAPES = st.lists(st.integers(0, 5), max_size=5)
DTYPES = st.sampled_from(
    [np.uint8, np.uint16, np.int64, np.float16, np.float32, np.float64, bool, complex, object, "U3", "S3",
     "V4"])
ARRAYS = st.builds(lambda s, d, t: torch.zeros(s) if t else np.zeros(s, d), SHAPES, DTYPES, st.booleans())
ANYTHING = st.recursive(
    st.one_of(SCALARS, ARRAYS),
    lambda o: st.one_of(st.lists(o, max_size=3), st.tuples(o, o),
                        st.dictionaries(st.sampled_from(["bytes", "path", "image", 1]), o, max_size=2),
                        st.builds(iter, st.lists(o, max_size=3))),
    max_leaves=6)


def is_split_or_refused(o, labels):
    "Each entry ends in success or in `BadData`, whatever it is given."
    for f in (lambda: Split(o, labels), lambda: as_images(o), lambda: list(each_image(o)),
              lambda: bad_images(o), lambda: open_image(o), lambda: image_hash(o),
              lambda: Features(o, labels), lambda: Task(o, labels, o, o),
              lambda: Split(PICTURES, labels).subset(o), lambda: METHOD().predict(o, PICTURES[0]),
              lambda: METHOD().predict(0, o)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try: f()
            except BadData as e: assert str(e)


@settings(max_examples=200, **QUIET)
@given(ANYTHING, st.one_of(ANYTHING, st.lists(st.integers(-1, 3), max_size=4)))
@example([PICTURES[0], 3], [0])
def test_odd_values(o, labels): is_split_or_refused(o, labels)


@pytest.mark.slow
@settings(max_examples=10_000, **QUIET)
@given(ANYTHING, st.one_of(ANYTHING, st.lists(st.integers(-1, 3), max_size=4)))
def test_many_odd_values(o, labels): is_split_or_refused(o, labels)


@pytest.mark.slow
def test_memory_of_eight_threads(tmp_path):
    "Eight pictures of 20 million pixels and 16 bits, with room for two."
    (tmp_path / "deep.png").write_bytes(bare_png(4000, 5000))
    status, out, err = Forked("test_images:decode_in_eight_threads", tmp_path / "deep.png",
                              sys_path=[ROOT, ROOT / "tests"], both=True).wait(300)
    assert status == 0, out[-2000:]
