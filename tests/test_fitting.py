"""brh_jax.fit_raptor: from images of one's own to an Encoder, within a time."""

import re

import numpy as np
import pytest
from PIL import Image

import brh_jax
from brh_jax.data.lists import ImageList
from brh_jax.distill import timed
from brh_jax.errors import UserError
from brh_jax.partition import Partition


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (9 + n, 12, 3), dtype=np.uint8)) for n in range(12)]


@pytest.mark.slow
def test_a_folder_becomes_a_raptor(tiny_encoder, tiny_images, pictures, tmp_path, capsys):
    """It comes nearer to its teacher than the first state repeated, and is kept and read back."""
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    raptor = brh_jax.fit_raptor(tiny_encoder, tmp_path, k=2, steps=150, batch_size=8, seed=3)
    printed = capsys.readouterr().out
    assert f"tiny: 12 images, phases {raptor.config.partition}" in printed
    assert re.search(r"fit a Raptor +150/150", printed)
    assert raptor.config.partition.k == 2 and raptor.name == f"Raptor {raptor.config.partition} of tiny"
    teacher = np.asarray(tiny_encoder.trajectory(tiny_images))
    error = np.square(np.asarray(raptor.trajectory(tiny_images)) - teacher)[1:].mean()
    assert error < 0.5 * np.square(teacher[0] - teacher)[1:].mean()
    brh_jax.save(raptor, tmp_path / "kept")
    np.testing.assert_array_equal(brh_jax.load(tmp_path / "kept").trajectory(tiny_images), raptor.trajectory(tiny_images))


@pytest.mark.slow
def test_the_first_steps_are_timed(tiny_encoder, pictures, tmp_path):
    config = brh_jax.RaptorConfig(tiny_encoder.config, Partition((2, 4)))
    training = timed.Training(tiny_encoder, config, ImageList(pictures), 8, True, 0.03, 0, tmp_path)
    pace = training._pace()
    assert pace.compiling >= 0 < pace.step
    assert not list(tmp_path.iterdir())


def test_what_images_may_be(pictures, tmp_path):
    for picture in pictures:
        picture.save(tmp_path / f"{picture.height}.png")
    array = np.zeros((5, 8, 8), np.uint8)
    assert [
        len(timed.images_source(one)) for one in (tmp_path, str(tmp_path), f"folder:{tmp_path}", array, pictures, "digits:test")
    ] == [
        12,
        12,
        12,
        5,
        12,
        360,
    ]
    mixed = ImageList([pictures[3], np.zeros((4, 6), np.uint8)])
    assert [np.asarray(mixed.read(i)["image"]).shape for i in range(2)] == [(12, 12, 3), (4, 6, 3)]
    assert mixed.fingerprint() != ImageList(pictures[:2]).fingerprint()


def test_a_time_that_is_too_short_says_what_is_needed(tiny_encoder, pictures, monkeypatch):
    monkeypatch.setattr(timed.Training, "_pace", lambda self: timed.Pace(20.0, 6.0))
    with pytest.raises(UserError, match=r"minutes is 1: a step takes 6 s here, so 10 of them need 1\.\d minutes"):
        brh_jax.fit_raptor(tiny_encoder, pictures, minutes=1, batch_size=8, partition=(2, 4))


def test_as_many_steps_are_taken_as_fit(tiny_encoder, pictures, monkeypatch):
    """With steps of 0.5 s and a second of compiling twice, 600 s hold as many as fill 95 % of them."""
    given = []
    monkeypatch.setattr(timed.Training, "_pace", lambda self: timed.Pace(1.0, 0.5))
    monkeypatch.setattr(timed.Training, "_train", lambda self, steps, seconds: given.append(steps) or self._fresh())
    brh_jax.fit_raptor(tiny_encoder, pictures, minutes=10, batch_size=8, partition=Partition((2, 4)))
    assert given == [pytest.approx((0.95 * 600 - 2) / 0.5, rel=0.05)]


@pytest.mark.wrong_types
def test_what_is_refused_at_once(tiny_encoder, pictures):
    for options, message in (
        ({"k": 0}, "k is 0: expected a number of phases"),
        ({"k": 2.5}, "k is 2.5"),
        ({"minutes": 0}, "minutes is 0: expected a positive number"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 12}, "batch_size is 12: expected a positive multiple of the number of devices, 8"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"images": []}, "list holds no images"),
        ({"images": ["cat.jpg"]}, "entry 0 of list is a str: expected PIL images or arrays"),
        ({"images": "no/such/folder"}, "no image folder at no/such/folder"),
        ({"images": np.zeros((2, 8, 8, 3), np.float32)}, "images are float32: expected pixels as they are"),
        ({"images": 7}, "images are a int"),
        ({"partition": (2, 2)}, "covers 4 layers, the teacher has 6"),
        ({"k": 5, "batch_size": 8}, "5 were asked for"),
    ):
        with pytest.raises(UserError, match=message):
            brh_jax.fit_raptor(tiny_encoder, **({"images": pictures, "minutes": 1} | options))
