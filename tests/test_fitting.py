"""brh_jax.fit_raptor: from images of one's own to an Encoder, within a time."""

import jax
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
    raptor = brh_jax.fit_raptor(tiny_encoder, tmp_path, k=2, steps=150, batch_size=8, seed=3, learning_rates=(3e-3, 1e-3))
    printed = capsys.readouterr().out
    assert f"tiny: 12 images, phases {raptor.config.partition}" in printed
    assert "stage 1 of 2: blocks apart 150/150" in printed and "stage 2 of 2: blocks joined 150/150" in printed
    assert raptor.config.partition.k == 2 and raptor.name == f"Raptor {raptor.config.partition} of tiny"
    teacher = np.asarray(tiny_encoder.trajectory(tiny_images))
    error = np.square(np.asarray(raptor.trajectory(tiny_images)) - teacher)[1:].mean()
    assert error < 0.5 * np.square(teacher[0] - teacher)[1:].mean()
    brh_jax.save(raptor, tmp_path / "kept")
    np.testing.assert_array_equal(brh_jax.load(tmp_path / "kept").trajectory(tiny_images), raptor.trajectory(tiny_images))


@pytest.mark.slow
def test_the_first_steps_are_timed(tiny_encoder, pictures, tmp_path):
    config = brh_jax.RaptorConfig(tiny_encoder.config, Partition((2, 4)))
    training = timed.Training(tiny_encoder, config, ImageList(pictures), 8, True, (1e-3, 1e-3), 0, tmp_path)
    blocks, objective = training._fresh(), training._objective(0, 1000)
    before = jax.tree.map(np.copy, blocks)
    pace = training._pace(objective, blocks, True)
    assert pace.compiling > 5 * pace.step > 0
    jax.tree.map(np.testing.assert_array_equal, blocks, before)  # they were trained on a copy


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
    monkeypatch.setattr(timed.Training, "_pace", lambda self, objective, blocks, variant: timed.Pace(20.0, 6.0))
    with pytest.raises(UserError, match=r"minutes is 1: a step of each stage takes 12 s here, so ten of each need 3\.\d minutes"):
        brh_jax.fit_raptor(tiny_encoder, pictures, minutes=1, batch_size=8, partition=(2, 4))


def test_both_stages_get_the_steps_that_fit(tiny_encoder, pictures, monkeypatch):
    """With steps of 0.5, 0.3 and 0.6 s, 600 s hold as many of both stages as fill 95 % of them."""
    given = []
    pace = {(0, True): (1.0, 0.5), (0, False): (1.0, 0.3), (1, False): (1.0, 0.6)}
    monkeypatch.setattr(timed.Training, "_pace", lambda s, o, b, v: timed.Pace(*pace[(int(not o.per_block), v)]))
    monkeypatch.setattr(timed.Training, "_train", lambda s, stage, steps, blocks, seconds: given.append((stage, steps)) or blocks)
    brh_jax.fit_raptor(tiny_encoder, pictures, minutes=10, batch_size=8, partition=Partition((2, 4)))
    (_, apart), (_, joined) = given
    assert apart == pytest.approx((0.95 * 600 - 3) / (0.25 * 0.5 + 0.75 * 0.3 + 0.6), rel=0.05)
    assert joined == pytest.approx((0.95 * 600 - 1) / 0.6, rel=0.05)  # as the first took no time here


@pytest.mark.wrong_types
def test_what_is_refused_at_once(tiny_encoder, pictures):
    for options, message in (
        ({"k": 0}, "k is 0: expected a number of phases"),
        ({"k": 2.5}, "k is 2.5"),
        ({"minutes": 0}, "minutes is 0: expected a positive number"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 12}, "batch_size is 12: expected a positive multiple of the number of devices, 8"),
        ({"learning_rates": (1e-3,)}, "learning_rates is"),
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
