"""Weights, models and what lies beside them, damaged or made up by someone who means no good."""

import json
import os
import pathlib
import struct
import zipfile

import numpy as np
from hostile.case import Case
from safetensors.numpy import save_file

import brh_jax
from brh_jax import phases
from brh_jax.errors import UserError
from weights_convert import cache, convert

DIM, HEADS = 16, 2


def state() -> dict[str, np.ndarray]:
    """A ViT of one layer, 2 x 2 patches of 4 pixels, in the names of timm."""
    draw = np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, DIM),
        "pos_embed": (1, 5, DIM),
        "patch_embed.proj.weight": (DIM, 3, 4, 4),
        "patch_embed.proj.bias": (DIM,),
        "blocks.0.attn.qkv.weight": (3 * DIM, DIM),
        "blocks.0.attn.qkv.bias": (3 * DIM,),
        "blocks.0.attn.proj.weight": (DIM, DIM),
        "blocks.0.attn.proj.bias": (DIM,),
        "blocks.0.mlp.fc1.weight": (4 * DIM, DIM),
        "blocks.0.mlp.fc1.bias": (4 * DIM,),
        "blocks.0.mlp.fc2.weight": (DIM, 4 * DIM),
        "blocks.0.mlp.fc2.bias": (DIM,),
    }
    norms = {f"{name}.{part}": (DIM,) for name in ("blocks.0.norm1", "blocks.0.norm2", "norm") for part in ("weight", "bias")}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in (shapes | norms).items()}


CONFIG = {"model_type": "vit", "hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": HEADS, "hidden_act": "gelu"}


def write(folder: pathlib.Path, changes: dict | None = None, config: dict | None = None, **processor) -> pathlib.Path:
    """The ViT as a folder of the hub, with other tensors and settings here and there."""
    save_file(state() | (changes or {}), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    about = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}} | processor
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


def load(folder: pathlib.Path):
    return brh_jax.load(folder, num_heads=HEADS)


def tensor(name: str, array: np.ndarray):
    return lambda folder: load(write(folder, {name: array}))


def setting(**config):
    return lambda folder: load(write(folder, config=config))


def processor(**about):
    return lambda folder: load(write(folder, **about))


def raw(name: str, content: bytes, beside: str = ""):
    """A file of weights with that content, with config.json or alone."""

    def act(folder):
        if beside:
            (folder / "config.json").write_text(beside)
        (folder / name).write_bytes(content)
        load(folder)

    return act


def header(text: str, data: bytes = bytes(4)) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + data


def one(dtype: str, shape: list[int]) -> str:
    return json.dumps({"cls_token": {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}})


def config_text(text: str | bytes):
    def act(folder):
        write(folder)
        (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        load(folder)

    return act


def index(weight_map):
    def act(folder):
        write(folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        load(folder)

    return act


def torch_file(make):
    def act(folder):
        import torch

        torch.save(make(torch), folder / "w.pt")
        brh_jax.load(folder / "w.pt", num_heads=HEADS)

    return act


def truncated(folder):
    file = write(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    load(folder)


def pipe(name: str):
    def act(folder):
        write(folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        load(folder)

    return act


def folder_as_file(folder):
    (write(folder) / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    load(folder)


def no_config(folder):
    (write(folder) / "config.json").unlink()
    (folder / "preprocessor_config.json").unlink()
    assert load(folder).config.num_heads == HEADS


def compressed(folder):
    import torch

    torch.save({name: torch.tensor(array) for name, array in state().items()}, folder / "stored.pt")
    with zipfile.ZipFile(folder / "stored.pt") as stored, zipfile.ZipFile(folder / "w.pt", "w", zipfile.ZIP_DEFLATED) as out:
        for entry in stored.infolist():
            out.writestr(entry.filename, stored.read(entry))
    brh_jax.load(folder / "w.pt", num_heads=HEADS)


def contains_itself(torch):
    state = {}
    state["model"] = {"teacher": state}
    return state


def seen_larger(torch):
    small = {name: torch.tensor(array) for name, array in state().items()}
    return small | {"cls_token": torch.zeros(1).expand(1, 1, 10**7)}


def with_bias(torch, bias):
    return {name: torch.tensor(array) for name, array in state().items()} | {"norm.bias": bias}


def nested(torch):
    return with_bias(torch, torch.nested.nested_tensor([torch.zeros(DIM)]))


def on_meta(torch):
    return with_bias(torch, torch.zeros(DIM, device="meta"))


def sparse(torch):
    return with_bias(torch, torch.zeros(DIM).to_sparse())


def averages(folder):
    """Of several state dicts in one file it is said which was taken; what an optimiser keeps is none."""
    import torch

    model = {name: torch.tensor(array) for name, array in state().items()}
    kept = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}
    whole = {"model_ema": {f"module.{name}": 2 * tensor for name, tensor in model.items()}, "model": model, "optimizer": kept}
    torch.save(whole, folder / "w.pt")
    encoder, report = convert(str(folder / "w.pt"), num_heads=HEADS)
    assert report.assumed[0] == "the weights under 'model'; the file holds others under 'model_ema'"
    np.testing.assert_array_equal(encoder.params["norm"]["bias"], state()["norm.bias"])


def pixels_to_255(folder):
    """What transformers' processors then take mean and deviation of."""
    about = {"do_rescale": False, "image_mean": [123.0, 116.0, 103.0], "image_std": [58.0, 57.0, 51.0]}
    pixels = np.full((1, 8, 8, 3), (181, 2, 103), np.uint8)
    seen = load(write(folder, **about)).preprocess(list(pixels))
    np.testing.assert_allclose(seen[0, 0, 0], [1.0, -2.0, 0.0], atol=1e-5)
    seen = load(write(folder, **about, do_normalize=False)).preprocess(list(pixels))
    np.testing.assert_allclose(seen[0, 0, 0], [181, 2, 103], rtol=1e-6)


def overflowing(folder):
    """Finite weights, of which the states are not."""
    encoder = tensor("blocks.0.mlp.fc2.weight", np.full((DIM, 4 * DIM), 3e38, np.float32))(folder)
    states = encoder.trajectory(encoder.preprocess([np.zeros((8, 8, 3), np.uint8)]))
    phases.max_cut(phases.layer_dissimilarity(states, encoder.layout), 1)


def made(folder):
    (folder / "hub").mkdir()
    return load(write(folder / "hub"))


def onnx_with(location: str):
    def act(folder):
        import onnx

        graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(np.zeros(4, np.float32), "cls_token")])
        held = graph.initializer[0]
        held.ClearField("raw_data")
        held.data_location = onnx.TensorProto.EXTERNAL
        held.external_data.add(key="location", value=location)
        (folder / "inner").mkdir()
        (folder / "secret").write_bytes(bytes(16))
        (folder / "inner" / "w.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
        brh_jax.load(folder / "inner" / "w.onnx")

    return act


def stored(folder: pathlib.Path) -> pathlib.Path:
    from brh_jax.models import store

    (folder / "hub").mkdir()
    return store.save(convert(str(write(folder / "hub")))[0], folder / "model")


def flipped(folder):
    file = stored(folder) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    brh_jax.load(folder / "model")


def edited(folder):
    file = stored(folder) / "config.json"
    file.write_text(file.read_text().replace('"num_heads": 2', '"num_heads": 4'))
    brh_jax.load(folder / "model")


def emptied_entry(folder):
    load(write(folder))
    entry = cache.cache_folder() / cache.key(str(folder), {"num_heads": HEADS})
    for file in entry.iterdir():
        file.unlink()
    load(folder)
    assert (entry / "model.safetensors").exists()


def no_cache(folder):
    write(folder)
    (folder / "file").write_text("")
    kept = os.environ["BRH_JAX_CACHE"]
    os.environ["BRH_JAX_CACHE"] = str(folder / "file" / "below")
    try:
        assert load(folder).depth == 1
    finally:
        os.environ["BRH_JAX_CACHE"] = kept


def gzip_bomb(folder):
    import gzip

    from brh_jax.data.sources import open_source

    says = b"\0\0\x08\x03" + struct.pack(">3I", 2**20, 2**10, 2**10)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(says + bytes(10**6)))
    open_source(f"idx:{folder / 'train'}")


def flat_raptor(folder):
    save_file({"blocks.0.attn.in_proj_weight": np.zeros(48, np.float32)}, folder / "raptor.safetensors")
    brh_jax.load(folder / "raptor.safetensors", partition=(2,))


def step_out(layer):
    def act(folder):
        encoder = convert(str(write(folder)))[0]
        try:
            encoder.system().step(np.ones((1, 5, DIM), np.float32), layer)
        except ValueError as error:  # of Python's own kind, as of any argument that is out of range
            raise UserError(str(error)) from None

    return act


class Code:
    """Ran, if it were unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("code-ran",))


FLOATS = "expected float16, bfloat16, float32, float64"
CASES = [
    Case("a cut safetensors file", truncated, "is damaged or no safetensors file"),
    Case("a header longer than its file", raw("model.safetensors", struct.pack("<Q", 10**6) + b"{}"), "is damaged"),
    Case("a header that is no JSON", raw("model.safetensors", header("{not json")), "is damaged"),
    Case("a negative shape", raw("model.safetensors", header(one("F32", [-1]))), "is damaged.*-1"),
    Case("a shape beyond all bounds", raw("model.safetensors", header(one("F32", [2**62, 8]))), "is damaged.*overflow"),
    Case("a type that does not exist", raw("model.safetensors", header(one("F99", [1]))), "is damaged.*F99"),
    Case(
        "two tensors of one name",
        raw("model.safetensors", header(one("F32", [1])[:-1] + ", " + one("F32", [1])[1:].replace("[0, 4]", "[4, 8]"), bytes(8))),
        "is damaged",
    ),
    Case("an empty file", raw("w.pth", b""), "w.pth is empty: download it again"),
    Case("a pointer of Git LFS", raw("w.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    Case("a web page", raw("w.bin", b"<!DOCTYPE html><html>"), "is a web page"),
    Case("code in a pickle", torch_file(lambda torch: {"model": Code()}), r"holds a posix\.mkdir.*never unpickled"),
    Case("a function in a pickle", torch_file(lambda torch: {"norm": os.system}), r"holds a posix\.system.*never unpickled"),
    Case("a dict that contains itself", torch_file(contains_itself), "a dict that contains itself"),
    Case("a list in place of a state dict", torch_file(lambda torch: [1, 2]), "holds list, expected a state dict"),
    Case("a shape of which a file holds one value", torch_file(seen_larger), "does not hold as many values"),
    Case("a nested tensor", torch_file(nested), "norm.bias is a tensor nested, expected plain ones"),
    Case("a tensor without its values", torch_file(on_meta), "norm.bias is a tensor without its values, expected plain ones"),
    Case("a sparse tensor", torch_file(sparse), "norm.bias is a tensor of layout torch.sparse_coo, expected plain ones"),
    Case("weights and their average in one file", averages),
    Case("weights at an address", lambda folder: brh_jax.load("gs://bucket/w.safetensors"), "addresses are not read, download"),
    Case(
        "a model saved to an address", lambda folder: brh_jax.save(made(folder), "gs://bucket/model"), "is an address: expected"
    ),
    Case("a compressed .pt", compressed, "its parts are compressed"),
    Case("a pipe as weights", pipe("model.safetensors"), "is a pipe, socket or device: expected a file"),
    Case("a pipe as configuration", pipe("config.json"), "config.json is a pipe"),
    Case("a folder as weights", folder_as_file, "is a folder: expected a file"),
    Case("weights without a configuration", no_config),
    Case("a configuration that is a list", config_text("[1, 2]"), "config.json holds a list, expected an object"),
    Case("a deeply nested configuration", config_text('{"a": ' * 10**5), "nested too deeply|not valid JSON"),
    Case("a configuration that is no text", config_text(b'{"model_type": "\xff"}'), "config.json is not valid JSON"),
    Case("an unknown architecture", setting(model_type="swin"), "model_type 'swin' is of no family known here"),
    Case("an architecture that is a list", setting(model_type=["vit"]), r"model_type \['vit'\] is of no family"),
    Case("no heads", setting(num_attention_heads=0), "num_attention_heads in its configuration is 0"),
    Case("fewer than no layers", setting(num_hidden_layers=-3), "num_hidden_layers in its configuration is -3"),
    Case("a billion layers", setting(num_hidden_layers=10**9), "has [0-9,]+ parameters, the source [0-9,]+"),
    Case("an epsilon that is not a number", setting(layer_norm_eps=float("nan")), "layer_norm_eps in config.json is nan"),
    Case("a negative epsilon", setting(layer_norm_eps=-1e-6), "layer_norm_eps in config.json is -1e-06"),
    Case(
        "pixels divided by zero", processor(image_std=[0.5, 0, 0.5]), r"std is \(0.5, 0, 0.5\): expected three positive numbers"
    ),
    Case("a mean that is not a number", processor(image_mean=[float("nan")] * 3), "mean is .*nan.*: expected three numbers"),
    Case("means of four channels", processor(image_mean=[0.5] * 4), "mean is .*: expected three numbers"),
    Case("means of pixels to 255", processor(image_mean=[123.7, 116.3, 103.5]), "mean is .*divide those of 0 ... 255 by 255"),
    Case("pixels that stay in 0 ... 255", pixels_to_255),
    Case("images of no size", processor(size={"height": 0, "width": 8}), r"crop is \(0, 8\)"),
    Case("an index that is a list", index(["model.safetensors"]), "weight_map that is list: expected an object"),
    Case("an index that leads out", index({"norm": "../../etc/passwd.safetensors"}), "nothing outside is read"),
    Case("an index with an absolute path", index({"norm": "/etc/passwd.safetensors"}), "nothing outside is read"),
    Case("an index of pickles", index({"norm": "code.pth"}), r"expected \.safetensors files"),
    Case("a value beyond float32", tensor("norm.bias", np.full(DIM, 1e300)), r"norm.bias holds 1e\+300, beyond float32"),
    Case("bytes in place of floats", tensor("norm.bias", np.zeros(DIM, np.int8)), f"norm.bias is I8, {FLOATS}"),
    Case("truth values in place of floats", tensor("norm.bias", np.zeros(DIM, bool)), f"norm.bias is BOOL, {FLOATS}"),
    Case("complex numbers", tensor("norm.bias", np.zeros(DIM, np.complex64)), f"norm.bias is C64, {FLOATS}"),
    Case("weights whose states overflow", overflowing, "holds NaN or infinity: check the states that it is of, and the weights"),
    Case("NaN weights", tensor("norm.bias", np.full(DIM, np.nan, np.float32)), "not finite: norm.bias holds NaN or infinity"),
    Case("a graph that reads outside its folder", onnx_with("../secret"), "names '../secret'.*nothing outside is read"),
    Case("a graph whose tensors are not there", onnx_with("gone.data"), "gone.data cannot be read"),
    Case("a flipped bit in a model", flipped, "model is damaged or incomplete: model.safetensors is not what was written"),
    Case("another number of heads in a model", edited, "config.json is not what was written"),
    Case("an emptied entry of the cache", emptied_entry),
    Case("no cache at all", no_cache),
    Case("a Raptor with vectors for matrices", flat_raptor, "is not a Raptor that can be read"),
    Case("a step beyond the last layer", step_out(1), "layer 1 is out of range: layers are counted from 0"),
    Case("a step before the first layer", step_out(-1), "layer -1 is out of range"),
    Case("a gzip bomb", gzip_bomb, "says that it holds 1,099,511,627,776 bytes"),
]
