"""A ViT's checkpoint to parameters that can be used: weights_convert, and transformers' from_pretrained of the same file.

python -m benchmarks convert --arch=vitb14
"""

import json
import os
import pathlib
import tempfile
from collections.abc import Sequence

import jax
import numpy as np

import brh_jax
from benchmarks import measure, models
from brh_jax.files import SUMS
from weights_convert import convert, export


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = measure.parser("convert", __doc__)
    parser.add_argument("--arch", default="vitb14", help="a name of brh_jax.models.ARCHITECTURES")
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.repeats = 2
    report = measure.Report("convert", arguments)
    kept = os.environ.get("BRH_JAX_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BRH_JAX_CACHE"] = f"{folder}/cache"
        try:
            _compare(report, pathlib.Path(folder), arguments)
        finally:
            os.environ.pop("BRH_JAX_CACHE")
            if kept is not None:
                os.environ["BRH_JAX_CACHE"] = kept
    return report.finish()


def _compare(report, folder, arguments):
    size = 28 if arguments.tiny else 224
    made = models.random_vit(arguments.arch, size, tiny=arguments.tiny)
    path = export.write(made, folder / "model")
    # As it comes from the hub: a section of ours would tell the conversion what it otherwise finds out.
    _without_ours(path / "config.json")
    gigabytes = (path / "model.safetensors").stat().st_size / 1e9
    brh_jax.load(path)  # fills the cache

    def ours():
        return _read(convert(str(path))[0].params)

    def cached():
        return _read(brh_jax.load(path).params)

    total = ours()[1]
    names = "weights_convert.convert", "brh_jax.load, out of the cache"
    sides = {names[0]: measure.Side(ours), names[1]: measure.Side(cached)}
    try:
        load = _transformers(path)
        report.agree("sums of all parameters but the mask token", total, load()[1], 1e-4)
        model = load()[0]
        pixels = models.random_pixels(2, size)
        states = convert(str(path))[0].at_size(size).trajectory(made.normalize_pixels(pixels))
        import torch

        with torch.inference_mode():
            expected = models.to_numpy(models.states_in_torch(model, models.as_torch_images(made.normalize_pixels(pixels))))
        report.agree("states", states, expected, measure.tolerance("float32"))
        sides["transformers, from_pretrained"] = measure.Side(load)
    except measure.Skipped as reason:
        report.skip("transformers, from_pretrained", reason)
    times = measure.in_turns(sides, arguments.repeats)
    for name, seconds in times.items():
        report.row(name, seconds, against=times[names[0]] if name not in names else None)
    report.note(
        f"{gigabytes:.2f} GB of float32; every parameter is read once after loading, as files may be mapped and not yet read"
    )


def _without_ours(config: pathlib.Path):
    about = json.loads(config.read_text())
    about.pop("brh_jax", None)
    config.write_text(json.dumps(about))
    (config.parent / SUMS).unlink()  # of what was written: this is another file now


def _read(params):
    return params, sum(float(np.float64(leaf.sum())) for leaf in jax.tree.leaves(params))


def _transformers(path):
    torch = measure.load_torch("transformers")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()

    def load():
        model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).to(measure.torch_device()).eval()
        return model, sum(float(p.detach().sum()) for name, p in model.named_parameters() if "mask_token" not in name)

    return load
