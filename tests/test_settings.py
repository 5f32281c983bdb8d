"""Every setting that is made of a number, a switch or a name, against values that it cannot have: each is
refused by its name, before anything is loaded or trained."""

import json
import math
from dataclasses import asdict, fields
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from hipro_nb.baselines import METHODS
from hipro_nb.cli import RunSettings
from hipro_nb.tasks import BadData, Features, Task, few_shot, fraction
from hipro_nb.store import FeatureStore
from hipro_nb.folders import load_image_folder
from hipro_nb.schedule import hold_out
from hipro_nb.train import TrainConfig
from hipro_nb.tree import TaskTree
from hipro_nb.views import encode_views

SCALARS = {int, float, bool, str, type(None)}
ODD = ["x", "", 1.5, math.nan, math.inf, -1, True, None, [1], (), {}, b"1", 1j, 10**400, object(),
       TrainConfig]


def parts(annotation): return get_args(annotation) or (annotation,)


def is_right(value, annotation):
    "Written out once more: `True` is no number, and numbers are finite."
    for kind in parts(annotation):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if kind is int and number and isinstance(value, int): return True
        if kind is float and number and value != 10**400 and math.isfinite(value): return True
        if kind not in (int, float) and isinstance(value, kind): return True
    return False


def refused(make, name, value, error=ValueError):
    with pytest.raises(error) as e: make(value)
    assert str(e.value).startswith(f"{name} is "), f"{name}: {e.value}"


@pytest.mark.parametrize("field", fields(TrainConfig), ids=lambda f: f.name)
def test_training(field):
    def make(value): return TrainConfig(**{field.name: value})
    for value in ODD:
        if not is_right(value, field.type): refused(make, field.name, value)
    for name in ("dtype", "device"):
        if field.name == name: refused(make, name, "half precision")
    if int in parts(field.type) or float in parts(field.type): refused(make, field.name, -1)


def test_numbers_of_numpy_become_pythons():
    config = TrainConfig(seed=np.int64(3), lr=np.float32(.5), per_task_batch=np.bool_(True))
    assert json.loads(json.dumps(asdict(config)))["seed"] == 3 and type(config.lr) is float


@pytest.mark.parametrize("field", fields(RunSettings), ids=lambda f: f.name)
def test_a_run(field):
    def make(value): return RunSettings(**{"data": "mini-families", field.name: value})
    for value in ODD:
        if not is_right(value, field.type): refused(make, field.name, value, BadData)


@pytest.mark.parametrize("name", METHODS)
def test_a_method(name):
    for field in fields(METHODS[name]):
        def make(value): return METHODS[name](**{field.name: value})
        if get_origin(field.type) is Literal:
            for value in ODD:
                with pytest.raises(ValueError, match=f"^{field.name} must be one of "): make(value)
        elif field.name == "templates":
            for value in ODD:
                if value is not None and not isinstance(value, str): refused(make, field.name, value)
        elif set(parts(field.type)) <= SCALARS | {TrainConfig, TaskTree}:
            for value in ODD:
                if not is_right(value, field.type): refused(make, field.name, value)


NO_NUMBERS = ["x", "", math.nan, math.inf, -1, True, None, [1], (), {}, b"1", 1j, object()]
LABELS = [0, 1, 0, 1]
DRAWS = dict(
    shots=lambda v: few_shot(LABELS, v),
    seed=lambda v: few_shot(LABELS, 1, seed=v),
    fraction=lambda v: fraction(LABELS, v),
    holdout=lambda v: hold_out(
        Task("t", ["a", "b"], Features(torch.eye(4), LABELS), Features(torch.eye(4), LABELS)), v),
    views=lambda v: encode_views(None, [], v))


@pytest.mark.parametrize("name", DRAWS)
def test_draws(name):
    for value in NO_NUMBERS:
        if name == "seed" and value == -1: continue  # any whole number is a seed of a draw
        with pytest.raises(BadData, match=f"{name}="): DRAWS[name](value)


@pytest.mark.parametrize("name", ["shots", "fraction"])
def test_draws_of_a_folder(tmp_path, name):
    for value in NO_NUMBERS:
        if value is None: continue
        with pytest.raises(BadData, match=f"{name}="): load_image_folder(tmp_path, **{name: value})
    for value in (None, 3, True, b"x", [tmp_path]):
        with pytest.raises(BadData, match="names no file"): load_image_folder(value, shots=1)
    for value in (3, True, b"x", [tmp_path]):
        with pytest.raises(BadData, match="names no folder"): FeatureStore(value)
