"""The teacher: converted from pretrained weights, trained here, or not trained at all."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import brh_jax
from brh_jax.data.sources import Source, Subset
from brh_jax.errors import UserError
from brh_jax.models import Encoder, ViT, ViTConfig, store
from brh_jax.models.cost import cost, describe
from brh_jax.models.registry import Architecture, architecture, check_architecture
from brh_jax.preprocessing import Preprocessing
from brh_jax.probes import classification
from brh_jax.supervised import SupervisedSettings, train_vit
from experiments.context import Context, identity, settings_of

# Of config.teacher.train, what SupervisedSettings does not hold.
_NOT_TRAINING = ("snapshots", "num_images")


def run(context: Context, folder: pathlib.Path) -> dict:
    """Leaves the teacher in `model/`, and what it was after some steps of training in `snapshots/stepN/`."""
    config = context.config
    if config.teacher.source == "train":
        encoder, notes = _train(context, folder), ["trained here from scratch"]
    else:
        encoder, notes = _pretrained(config)
        if not isinstance(encoder.config, ViTConfig):
            raise UserError(f"config.teacher.source {config.teacher.source} is a Raptor: expected a ViT")
    context.save(encoder, folder / "model", {"lines": notes})
    summary = {"name": encoder.name, "notes": notes, "depth": encoder.depth, "dim": encoder.dim}
    summary |= {"layout": dataclasses.asdict(encoder.layout), **cost(encoder)._asdict(), **describe(encoder)._asdict()}
    if "train" in config.teacher and encoder.head is not None:
        summary |= _accuracies(context, encoder)
    if snapshots := _snapshots(config):
        summary["snapshots"] = {
            str(step): _accuracies(context, context.encoder(_snapshot_folder(folder, step), "teacher")) for step in snapshots
        }
    return summary


def _accuracies(context: Context, encoder: Encoder) -> dict:
    """Of a teacher's own classifier, on images to test on and on those that it was trained on, without random crops."""
    found = {}
    for name, source in (("accuracy", context.source(context.config.data.eval)), ("train_accuracy", _training_source(context))):
        if len(source.classes) != len(encoder.head["bias"]):
            continue
        batches = context.measuring_batches(source, encoder.preprocessing, context.config.eval, name, augment="center_crop")
        found[name] = classification.accuracy(encoder.head, *classification.extract_features(encoder, batches))
        print(f"teacher: {name.replace('_', ' ')} {found[name]:.3f} on {source.name}", flush=True)
    return found


def _pretrained(config) -> tuple[Encoder, list[str]]:
    """Weights from anywhere, or a converted folder."""
    source, size = config.teacher.source, config.data.image_size or None
    if source.startswith("random:"):
        encoder = _untrained(architecture(source.removeprefix("random:")), size, config.seed)
        return encoder, [f"randomly initialised, seed {config.seed}: {source}"]
    if store.is_encoder_folder(source):
        encoder = brh_jax.load(source, image_size=size)
        if config.teacher.arch:
            check_architecture(source, encoder.config, config.teacher.arch)
        return encoder, [f"converted before: {source}"]
    from weights_convert.convert import convert

    encoder, report = convert(source, arch=config.teacher.arch, image_size=size)
    notes = report.lines(encoder)
    print("\n".join(notes), flush=True)
    return encoder, notes


def _untrained(arch: Architecture, size: int | None, seed: int) -> Encoder:
    """A control: the architecture with the parameters that its training would begin with."""
    size = size or arch.image_size
    image = jnp.zeros((1, size, size, arch.config.channels))
    params = jax.jit(ViT(arch.config).init)(jax.random.key(seed), image)["params"]
    return Encoder(arch.config, params, Preprocessing((size, size)), name=f"untrained {arch.hub_id}")


def _train(context: Context, folder) -> Encoder:
    config = context.config
    if "vit" not in config.teacher or "train" not in config.teacher:
        raise UserError(
            "config.teacher.source is train, but config.teacher.vit and .train are not set: see configs/quickstart.py"
        )
    size, patch = config.data.image_size, config.teacher.vit.patch_size
    if not size:
        raise UserError("config.data.image_size is 0: a teacher trained here needs the size of its images in pixels")
    vit = settings_of(ViTConfig, config.teacher.vit, position_grid=(max(size // patch, 1),) * 2)
    vit.layout(size, size)
    preprocessing = Preprocessing((size, size), None, (0.5,) * 3, (0.5,) * 3)
    source = _training_source(context)
    classification.check_labels(source, "config.data.train")
    settings = settings_of(SupervisedSettings, {k: v for k, v in config.teacher.train.items() if k not in _NOT_TRAINING})
    snapshots = _snapshots(config)
    if any(not 0 <= step <= settings.steps for step in snapshots):
        raise UserError(f"config.teacher.train.snapshots is {snapshots}: expected numbers of steps from 0 to {settings.steps}")
    return train_vit(
        vit,
        preprocessing,
        len(source.classes),
        context.training_batches(source, preprocessing, settings.batch_size, config.seed),
        settings,
        seed=config.seed,
        mesh=context.mesh,
        name=f"ViT trained on {source.name}",
        snapshots=snapshots,
        keep=lambda step, encoder: context.save(encoder, _snapshot_folder(folder, step), {"step": step, "of": settings.steps}),
        folder=folder / "training",
        identity=identity(ConfigDict({"vit": config.teacher.vit, "train": config.teacher.train})),
        label="teacher",
        loop=context.loop,
    )


def _training_source(context: Context) -> Source:
    """The images that a teacher is trained on: `config.teacher.train.num_images` of them, where that is not 0."""
    source, limit = context.source(context.config.data.train), context.config.teacher.train.get("num_images", 0)
    return Subset(source, limit, context.config.seed) if limit else source


def _snapshots(config) -> tuple[int, ...]:
    """Numbers of steps after which a teacher trained here is also kept."""
    return tuple(config.teacher.train.get("snapshots", ())) if config.teacher.source == "train" else ()


def _snapshot_folder(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / "snapshots" / f"step{step}"
