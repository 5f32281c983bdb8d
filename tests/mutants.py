"What a file may say when a stranger wrote it: plain values, tensors or bytes with one place changed."

import copy
import random

import torch

GONE = object()
DEEP = "[" * 100_000


def nested(depth=60):
    "A list in a list in a list"
    value = []
    for _ in range(depth): value = [value]
    return value


VALUES = (GONE, None, [], {}, 0, -1, 10**9, 10**30, 1.5, 1e300, "", "x" * 5000, "\x1b[31m", "../..", True,
          nested(), ["a"], {"a": 1}, [10**9], [-1], [[0], [0]])


def places(value, at=()):
    "The places in nested dicts and lists, each as the keys that lead there"
    if at: yield at
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for k in keys: yield from places(value[k], (*at, k))


def changed(value, at, new):
    "A copy with another value at a place, or without it"
    whole = inner = copy.deepcopy(value)
    for k in at[:-1]: inner = inner[k]
    if new is GONE: del inner[at[-1]]
    else: inner[at[-1]] = new
    return whole


def mutants(value, seed=None, n=None):
    "`(what was done, changed value)`: all, or `n` that a seed picks"
    found = [(at, new) for at in places(value) for new in VALUES]
    if n is not None: found = random.Random(seed).sample(found, min(n, len(found)))
    for at, new in found: yield f"{at} = {'gone' if new is GONE else repr(new)[:40]}", changed(value, at, new)


CHANGES = dict(flat=torch.Tensor.flatten, cut=lambda t: t[:-1] if t.ndim else t[None], more=lambda t: t[None],
               empty=lambda t: t[..., :0] if t.ndim else t[None][:0], int=torch.Tensor.long,
               bool=torch.Tensor.bool, half=torch.Tensor.half, double=torch.Tensor.double,
               nan=lambda t: t * float("nan"), inf=lambda t: t + float("inf"))


def tensor_mutants(tensors, seed=None, n=None):
    "`(what was done, changed tensors)`: all, or `n` that a seed picks"
    found = [(k, how) for k in sorted(tensors) for how in ("gone", *CHANGES)]
    if n is not None: found = random.Random(seed).sample(found, min(n, len(found)))
    one = torch.ones(1)
    yield "strange names", tensors | {"model.1000000000.ctx": one, "head.7": one, "": one, "model": one,
                                      "model.": one}
    for k, how in found:
        rest = {name: t for name, t in tensors.items() if name != k}
        yield f"{k} {how}", rest if how == "gone" else rest | {k: CHANGES[how](tensors[k])}


def damaged(raw, seed, n):
    "`(what was done, bytes)`: cut, flipped, swapped, doubled, and bytes of chance"
    rng = random.Random(seed)
    for _ in range(n):
        i, j = sorted((rng.randrange(len(raw) + 1), rng.randrange(len(raw) + 1)))
        kind = rng.choice(("cut", "flip", "remove", "double", "chance", "zeros"))
        if kind == "cut": yield f"cut at {i}", raw[:i]
        if kind == "flip":
            yield (f"flipped at {i}",
                   raw[:i] + bytes([raw[i] ^ 1 << rng.randrange(8)] if i < len(raw) else []) + raw[i + 1 :])
        if kind == "remove": yield f"without {i}:{j}", raw[:i] + raw[j:]
        if kind == "double": yield f"twice {i}:{j}", raw[:j] + raw[i:]
        if kind == "chance": yield f"chance at {i}:{j}", raw[:i] + rng.randbytes(j - i) + raw[j:]
        if kind == "zeros": yield f"zeros at {i}:{j}", raw[:i] + bytes(j - i) + raw[j:]
