"""Hostile inputs of the configuration for any teacher, and of what is measured while a Raptor trains."""

from hostile.case import Case
from PIL import Image

from experiments import pipeline
from experiments.configs import pretrained


def argument(text):
    """Reads a configuration's argument."""
    return lambda folder: pretrained.get_config(text)


def run(arg="source=gone.onnx", **data):
    """Runs it with these settings of `config.data`."""

    def act(folder):
        config = pretrained.get_config(arg).unlock()
        config.data.update(data)
        pipeline.run(config, folder / "run")

    return act


def a_setting(**changes):
    """Reads settings with these of `config.distill.validation`."""

    def act(folder):
        config = pretrained.get_config().unlock()
        with config.ignore_type():
            config.distill.validation.update(changes)
        pipeline.read_settings(config)

    return act


def a_picture_for_weights(folder):
    Image.new("RGB", (8, 8)).save(folder / "weights.safetensors", "png")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    run("source=weights.safetensors", train="folder:.", eval="folder:.")(folder)


_EXAMPLE = r", as in --config\.data\.train=folder:photos/train --config\.data\.eval=folder:photos/test$"
CASES = [
    Case(
        "comma in a source", argument("source=my,weights.onnx"), r"does not know 'weights\.onnx': expected source=SOURCE \(with"
    ),
    Case("unknown budget", argument("budget=phone"), "budget=phone is unknown: expected budget=laptop, gpu, paper"),
    Case("no phases", argument("k=0"), r"k=0 is no number of phases: expected k=3"),
    Case("unknown architecture", argument("arch=vitz14"), "unknown architecture 'vitz14'"),
    Case("no teacher", run("", train="folder:a", eval="folder:b"), r"config\.teacher\.source is empty: expected"),
    Case("no images to train on", run(eval="folder:b"), r"config\.data\.train is empty: expected .*" + _EXAMPLE),
    Case("no images to measure on", run(train="folder:a"), r"config\.data\.eval is empty: expected .*" + _EXAMPLE),
    Case(
        "weights that are not there",
        run(train="folder:a", eval="folder:b"),
        r"no weights at gone\.onnx: looked in \S+; expected a \.safeten",
    ),
    Case("picture for weights", a_picture_for_weights, r"weights\.safetensors"),
    Case("validation on no images", a_setting(num_images=0), r"validation\.num_images is 0: expected a positive number"),
    Case("validation minus once", a_setting(times=-1), r"validation\.times is -1: expected 0 or more|not negative"),
]
