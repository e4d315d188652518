"""Arrays, folders of models and images that hold something else than they say."""

import io
import json
import struct

import numpy as np
from hostile.case import Case
from PIL import Image
from safetensors.numpy import save_file

import brh_jax
from brh_jax.data.dense import open_depths
from brh_jax.data.pipeline import measuring_batches
from brh_jax.data.sources import ImageFolder
from brh_jax.data.transforms import Resize
from brh_jax.models import store
from experiments.results import read_arrays


def npy(shape, data=b"", descr="<f4"):
    """An .npy file whose header may lie."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def depth_map(content: bytes):
    def act(folder):
        for name in ("images", "depth"):
            (folder / name).mkdir()
        Image.new("RGB", (16, 12)).save(folder / "images" / "1.png")
        (folder / "depth" / "1.npy").write_bytes(content)
        list(measuring_batches(open_depths(f"depths:{folder}"), Resize((4, 4)), 1))

    return act


def white_is_zero(folder):
    Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(folder / "1.tif")
    content, tag = (folder / "1.tif").read_bytes(), struct.pack("<HHI", 262, 3, 1)
    (folder / "1.tif").write_bytes(content.replace(tag + b"\1", tag + b"\0"))
    (batch,) = measuring_batches(ImageFolder(folder), Resize((8, 8)), 1)
    assert (batch["image"] == 255 - round(60_000 / 257)).all()


def cut_arrays(folder):
    np.savez(folder / "arrays.npz", a=np.zeros(1000))
    (folder / "arrays.npz").write_bytes((folder / "arrays.npz").read_bytes()[:4000])
    read_arrays(folder / "arrays.npz")


def bomb_of_arrays(folder):
    np.savez_compressed(folder / "arrays.npz", a=np.zeros(10**6))
    read_arrays(folder / "arrays.npz")


def classes_that_are_no_names(folder):
    tensors = {"params/norm/scale": np.zeros(16, np.float32)}
    config = {"dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 64, "patch_size": 4, "position_grid": None}
    about = {"format": store.FORMAT, "config": config, "preprocessing": {"crop": [8, 8]}, "name": "it", "classes": {"0": 3}}
    (folder / "config.json").write_text(json.dumps(about))
    save_file(tensors, folder / "model.safetensors")
    brh_jax.load(folder)


def other_arrays(folder):
    """Those of another model under a configuration, without the sums that would tell."""
    config = {"dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 64, "patch_size": 4, "position_grid": None}
    about = {"format": store.FORMAT, "config": config, "preprocessing": {"crop": [8, 8]}, "name": "other"}
    (folder / "config.json").write_text(json.dumps(about))
    save_file({"params/norm/scale": np.zeros(8, np.float32)}, folder / "model.safetensors")
    brh_jax.load(folder)


CASES = [
    Case("classes of a model that are no names", classes_that_are_no_names, "config.json has classes that are no list of names"),
    Case("arrays of another model", other_arrays, r"its arrays are not those of its config.json: .*; convert it again"),
    Case("a depth map of petabytes", depth_map(npy((2**25, 2**25), bytes(9))), r"1\.npy: its header says .* and 9 are there"),
    Case("a depth map cut short", depth_map(npy((12, 16), bytes(500))), "1.npy: .* is 768 bytes, and 500 are there"),
    Case("a depth map of objects", depth_map(npy((12, 16), bytes(768), "|O")), "1.npy: an array of Python objects"),
    Case("a depth map that is no array", depth_map(b"hello"), "1.npy: no array in .npy format"),
    Case("a 16-bit TIFF whose zero is white", white_is_zero),
    Case("arrays of a run, cut short", cut_arrays, "arrays.npz is damaged .*: remove the folder of its stage"),
    Case("arrays of a run that expand", bomb_of_arrays, "arrays.npz is damaged .a.npy is compressed"),
]
