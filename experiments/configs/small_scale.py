"""The small-scale study: ViTs trained here with stochastic depth p, along training and over-fitted, each with its Raptor.

    python -m experiments.sweep --config=configs/small_scale.py:digits --workdir=runs/small_digits --jobs=2
    python -m experiments.sweep --config=configs/small_scale.py:fashion=data/fashion --workdir=runs/small_fashion --jobs=2
    python -m experiments.sweep --config=configs/small_scale.py:cifar100=data/cifar100,seeds=1 --workdir=runs/small_cifar --jobs=2
    python -m experiments.sweep --config=configs/small_scale.py:cifar100 --workdir=runs/small_cifar --config.data.data_dir=DIR
    python -m experiments.study runs/small_digits

Arguments, separated by commas:
    digits           scikit-learn's digits; nothing is downloaded
    fashion=FOLDER   Fashion-MNIST (or MNIST) in its own format, train-images-idx3-ubyte.gz and so on, plain or .gz
    cifar100=FOLDER  CIFAR-100 as folders of classes, FOLDER/train and FOLDER/test, for a CPU: 5,000
                     images 100 times each, on which a ViT over-fits as it is
    cifar100         CIFAR-100 from TFDS, prepared as docs/running.md says: p = 0, 0.1 ... 0.9, for a GPU
    seeds=3          how many of each

Every p and seed is one training, its ViT kept untrained, early, in the middle and at the end; the over-fitted ones see few images
for longer. For each of these ViTs: phases by max cut, a Raptor with k = 3, their agreement on images not trained on.

Hardware: digits and fashion 60 runs each, in about 40 minutes on 2 CPU cores; cifar100=FOLDER 13 runs a
seed, more than an hour; cifar100 105 runs, an accelerator, not measured.
Expect, by the paper (fig. 3, 4, 13): with p rise the similarity of layers, the Raptor's R² and accuracy, until training breaks at
0.7 to 0.9; an untrained ViT is easier to reproduce than an over-fitted one; clearer phases go with a better fit.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from brh_jax.errors import UserError
from experiments.configs import check_items, default, number, split_argument

_OVERFIT_P = (0.0, 0.4)


class _Varied(NamedTuple):
    """What a study varies.

    Attributes:
        ps: rates of stochastic depth.
        snapshots: numbers of training steps after which the ViT is kept, besides the end.
        few: images that are over-fitted in twice the steps; 0 for no such ViTs.
        overfit_snapshots: as `snapshots`, of these.
    """

    ps: tuple[float, ...]
    snapshots: tuple[int, ...]
    few: int = 0
    overfit_snapshots: tuple[int, ...] = ()


_VARIED = {
    "digits": _Varied((0.0, 0.2, 0.4, 0.6, 0.8), (50, 150), 100, (400,)),
    "fashion": _Varied((0.0, 0.2, 0.4, 0.6, 0.8), (50, 150), 100, (400,)),
    # All over-fit as it is.
    "cifar100 in folders": _Varied((0.0, 0.1, 0.2, 0.4, 0.6, 0.8), (1000,)),
    "cifar100": _Varied(tuple(p / 10 for p in range(10)), (1000, 5000), 2000, (20_000,)),
}


def get_config(arg: str = "digits") -> ConfigDict:
    """One run: a ViT trained to the end without stochastic depth. `sweep` varies it."""
    data, folder, _ = _options(arg)
    config = default.get_config().unlock()
    config.stages = ("teacher", "phases", "distill")
    config.study = ConfigDict({"group": "trained", "step": 0})  # what the run is in the study, for experiments.study
    config.teacher.source = "train"
    config.data.update({"augment": "random_resized_crop", "threads": 1})
    config.phases.update({"k": (3,), "num_images": 320})
    config.raptor.update({"mlp": "gelu", "mlp_ratio": 2.0})  # a block of the size of the ViT's
    if data == "cifar100":
        _on_gpu(config)
    else:
        _on_cpu(config, data, folder)
    config.study.step = config.teacher.train.steps
    return config.lock()


def sweep(arg: str = "digits", config: ConfigDict | None = None) -> dict[str, dict]:
    """The runs of the study; those of a snapshot take their ViT from the run that trained it."""
    data, _, seeds = _options(arg)
    varied = _VARIED[data]
    config = config or get_config(arg)
    steps = config.teacher.train.steps
    least = max((*varied.snapshots, *(step // 2 for step in varied.overfit_snapshots)))  # over-fitted ones take twice the steps
    if steps <= least:
        raise UserError(f"teacher.train.steps is {steps}: the study keeps ViTs on their way, expected more than {least} steps")
    runs = {}
    for seed in range(seeds):
        for p in varied.ps:
            # Before its first step a ViT does not know p: one for all.
            kept = (0, *varied.snapshots) if p == varied.ps[0] else varied.snapshots
            runs |= training(f"p{p}-seed{seed}", {"seed": seed, "teacher.vit.drop_path": p}, "trained", steps, kept)
        for p in _OVERFIT_P if varied.few else ():
            changes = {"seed": seed, "teacher.vit.drop_path": p, "teacher.train.num_images": varied.few}
            changes |= {"teacher.train.steps": 2 * steps}
            runs |= training(f"overfit-p{p}-seed{seed}", changes, "over-fitted", 2 * steps, varied.overfit_snapshots)
    return runs


def training(name: str, changes: dict, group: str, steps: int, kept: Sequence[int]) -> dict[str, dict]:
    """The run that trains a ViT to the end, and the runs on what it was after the steps of `kept`."""
    changes = changes | {"study.group": group, "study.step": steps}
    runs = {name: changes | {"teacher.train.snapshots": kept}}
    for step in kept:
        taken = {"teacher.source": f"{{workdir}}/{name}/teacher/snapshots/step{step}", "study.step": step}
        runs[f"{name}-step{step}"] = changes | taken
    return runs


def _options(arg: str) -> tuple[str, str, int]:
    """Data set, its folder, number of seeds."""
    found, items = split_argument(arg, fashion="", cifar100="", seeds="3")
    expected = "one of digits, fashion=FOLDER, cifar100=FOLDER and cifar100, and seeds=NUMBER"
    check_items("small_scale.py", items, ("digits", "cifar100"), expected)
    folders = {"fashion": found["fashion"], "cifar100 in folders": found["cifar100"]}
    named = [*items, *filter(folders.get, folders)] or ["digits"]
    if len(named) > 1:
        raise UserError(f"configs/small_scale.py is given several data sets, {', '.join(named)}: expected {expected}")
    return named[0], folders.get(named[0], ""), number("seeds", found["seeds"], "seeds")


def _on_cpu(config: ConfigDict, data: str, folder: str) -> None:
    size, patch = {"digits": (8, 2), "fashion": (28, 7)}.get(data, (32, 8))
    config.teacher.vit.update(_vit(dim=64, num_heads=2, patch_size=patch))
    config.teacher.train.update(_training_settings(steps=400, batch_size=64, learning_rate=2e-3, warmup_steps=40))
    splits = {
        "digits": ("digits:train", "digits:test"),
        "fashion": (f"idx:{folder}/train", f"idx:{folder}/t10k"),
        "cifar100 in folders": (f"folder:{folder}/train", f"folder:{folder}/test"),
    }[data]
    config.data.update({"train": splits[0], "eval": splits[1], "image_size": size, "crop_scale": (0.9, 1.0), "flip": False})
    config.distill.update({"batch_size": 32, "remat": "none"})
    config.distill.validation.times = 0  # of many short trainings; it would cost a third of each
    config.loop.update({"log_every": 50, "save_every": 1000})
    config.distill.stage1.update({"steps": 100, "learning_rate": 2e-3, "warmup_steps": 10})
    config.distill.stage2.update({"steps": 200, "learning_rate": 1e-3, "warmup_steps": 10})
    config.eval.update({"num_images": 360, "batch_size": 64})
    if data == "cifar100 in folders":
        # As long as it takes for stochastic depth to be worth its price.
        config.teacher.train.update({"num_images": 5000, "steps": 8000, "learning_rate": 1e-3, "warmup_steps": 500})
        config.data.update({"crop_scale": (0.6, 1.0), "flip": True})
        config.eval.num_images = 10_000


def _on_gpu(config: ConfigDict) -> None:
    config.teacher.vit.update(_vit(dim=192, num_heads=3, patch_size=4))
    config.teacher.train.update(_training_settings(steps=20_000, batch_size=256, learning_rate=1e-3, warmup_steps=1000))
    config.data.update({"train": "tfds:cifar100:train", "eval": "tfds:cifar100:test", "image_size": 32, "crop_scale": (0.4, 1.0)})
    config.data.threads = 16
    config.phases.num_images = 10_000
    config.distill.update({"batch_size": 128, "remat": "none"})
    config.loop.update({"log_every": 200})
    config.distill.stage1.update({"steps": 10_000, "learning_rate": 1e-3, "warmup_steps": 500})
    config.distill.stage2.update({"steps": 10_000, "learning_rate": 1e-3, "warmup_steps": 500})
    config.eval.update({"num_images": 10_000, "batch_size": 250})


def _vit(dim: int, num_heads: int, patch_size: int) -> dict:
    sizes = {"dim": dim, "depth": 12, "num_heads": num_heads, "mlp_dim": 2 * dim, "patch_size": patch_size}
    return {**sizes, "drop_path": 0.0}


def _training_settings(**settings) -> dict:
    return {**settings, "weight_decay": 0.05, "label_smoothing": 0.1, "remat": "none"}
