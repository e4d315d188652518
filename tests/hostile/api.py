"""Hostile inputs of what notebooks call: fit_raptor, results that draw themselves, replaced tokens, the hub's folder."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from hostile.case import Case
from PIL import Image

import brh_jax
from brh_jax import dynamics, phases
from brh_jax.distill import timed
from brh_jax.models import Encoder, ViTConfig
from brh_jax.models.encoder import init_params
from brh_jax.partition import Partition
from brh_jax.preprocessing import Preprocessing
from brh_jax.system import DepthSystem
from brh_jax.tokens import TokenLayout
from weights_convert import export

LAYOUT = TokenLayout(1, 0, (1, 2))
SYSTEM = DepthSystem(lambda state, layer: state, 3, LAYOUT)
STATES = np.ones((4, 2, 3, 5), np.float32)
PICTURES = [np.zeros((8, 8, 3), np.uint8)] * 4


def encoder() -> Encoder:
    config = ViTConfig(16, 4, 2, 32, 4, (2, 2), num_registers=1)
    params = init_params(config.module(), jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return Encoder(config, params, Preprocessing((8, 8)), name="small")


def states_of(images):
    return lambda folder: encoder().trajectory(images)


def fit(**options):
    return lambda folder: brh_jax.fit_raptor(encoder(), **({"images": PICTURES, "steps": 1, "batch_size": 8} | options))


def fit_on_rubbish(folder: Path):
    """A folder of files that are named like images and are none."""
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"not an image")
    brh_jax.fit_raptor(encoder(), folder, steps=1, batch_size=8)


def fit_in_a_raptor(folder: Path):
    config = brh_jax.RaptorConfig(encoder().config, Partition((2, 2)))
    raptor = Encoder(config, encoder().params, Preprocessing((8, 8)), name="a Raptor")
    brh_jax.fit_raptor(raptor, PICTURES)


def save_over_a_thesis(folder: Path):
    (folder / "thesis.txt").write_text("x")
    brh_jax.save(encoder(), folder)


def names_in_a_page(folder: Path):
    """A name that would end the script, and one that would be an element, stay text."""
    paths = dynamics.token_paths(STATES + np.arange(5, dtype=np.float32), LAYOUT)
    page = dynamics.animate_paths({"</script><img src=x onerror=alert(1)>": paths}).page
    assert "</script><img" not in page and "<img src=x" not in page


def a_constant_system_is_drawn(folder: Path):
    """Nothing moves: there is no variance to divide by, and no room between the limits of the axes."""
    paths = dynamics.token_paths(STATES, LAYOUT)
    assert np.isfinite(paths.explained).all() and np.isfinite(paths.tokens.cls).all()
    paths.plot()
    assert paths.animate().page


def phases_of_a_constant_matrix(folder: Path):
    assert phases.plot(np.zeros((3, 3)), Partition((1, 2)))._repr_png_().startswith(b"\x89PNG")


def a_hub_folder_without_its_section(folder: Path):
    """Without the section `brh_jax` nobody knows the architecture of a ViT under names of our own."""
    export.write(encoder(), folder / "out")
    about = json.loads((folder / "out" / "config.json").read_text())
    assert about["model_type"] == "brh_jax_vit"
    del about["brh_jax"]
    (folder / "out" / "config.json").write_text(json.dumps(about))
    (folder / "out" / "SHA256SUMS").unlink()
    brh_jax.load(folder / "out")


def a_flat_picture(folder: Path):
    """A folder with one picture is enough, whatever its mode: transparency lies on white."""
    Image.new("LA", (5, 9), (100, 0)).save(folder / "one.png")
    source = timed.images_source(folder)
    assert len(source) == 1
    assert np.unique(encoder().preprocessing.resize_and_crop(source.read(0)["image"])).tolist() == [255]


CASES = [
    Case("fit: no images at all", fit(images=[]), "holds no images"),
    Case("fit: an array of nothing", fit(images=np.zeros((0, 8, 8, 3), np.uint8)), "holds no images"),
    Case("fit: images made ready already", fit(images=np.zeros((2, 8, 8, 3), np.float32)), "expected pixels as they are, uint8"),
    Case("fit: names of files in a list", fit(images=["a.jpg"]), "entry 0 of list is a str: .*of files give the folder"),
    Case("fit: minus ten minutes", fit(minutes=-10), "minutes is -10: expected a positive number"),
    Case("fit: more phases than layers", fit(k=9), "9 were asked for"),
    Case("fit: a partition of another depth", fit(partition=(7, 5)), "covers 12 layers, the teacher has 4"),
    Case("fit: files that are no images", fit_on_rubbish, "none of the 3 images of .* can be decoded"),
    Case("fit: a Raptor for a teacher", fit_in_a_raptor, "the teacher a Raptor is a Raptor: expected a ViT"),
    Case("fit: one grey picture with alpha", a_flat_picture),
    Case("save: over somebody's thesis", save_over_a_thesis, "holds no encoder: nothing is written over it"),
    Case("replace: a layer that is not there", lambda f: SYSTEM.replace(3, "cls", 0.0), "layer is 3: expected one from 0 to 2"),
    Case("replace: True for a layer", lambda f: SYSTEM.replace(True, "cls", 0.0), "layer is True"),
    Case("replace: tokens that are not there", lambda f: SYSTEM.replace(0, "registers", 0.0), "no tokens 'registers'"),
    Case("replace: infinity", lambda f: SYSTEM.replace(0, "cls", np.inf), "is not finite"),
    Case(
        "replace: of another width", lambda f: SYSTEM.replace(0, 0, np.ones(4)).rollout(STATES[0]), r"shape \(4,\) does not fit"
    ),
    Case("plot: phases of NaN", lambda f: phases.plot(np.full((3, 3), np.nan)), "finite numbers throughout"),
    Case("plot: phases of another model", lambda f: phases.plot(np.eye(4), Partition((1, 2))), "has 3 layers, the matrix 4"),
    Case("plot: a matrix of zeros", phases_of_a_constant_matrix),
    Case("paths: tokens of one number", lambda f: dynamics.token_paths(STATES[..., :1], LAYOUT), "lie on no plane"),
    Case("paths: nothing moves", a_constant_system_is_drawn),
    Case("paths: a name that is HTML", names_in_a_page),
    Case("attention: of nothing", lambda f: dynamics.draw_attention({}, LAYOUT), "0 models and 2 patches: expected one or more"),
    Case("logits: without a classifier", lambda f: encoder().logits(jnp.zeros((1, 8, 8, 3))), "small has no classifier"),
    Case(
        "states: pixels for what they become", states_of(np.full((1, 8, 8, 3), 200.0)), "images hold values up to 200, and pixels"
    ),
    Case("states: of uint8", states_of(np.zeros((1, 8, 8, 3), np.uint8)), "must be preprocessed floats, got uint8"),
    Case(
        "pixels that are floats",
        lambda f: encoder().normalize_pixels(np.ones((1, 8, 8, 3), np.float32)),
        "pixels are float32: expected uint8, or encoder.preprocess",
    ),
    Case("preprocess: nothing", lambda f: encoder().preprocess([]), "takes several images, and was given none"),
    Case("hub: an own folder without its section", a_hub_folder_without_its_section, "has no section brh_jax"),
]
