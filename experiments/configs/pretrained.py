"""Any pretrained ViT on any images: phases, Raptors, what they keep of the teacher's decisions, dynamics, a page of results.

    python -m experiments.main --config=configs/pretrained.py:source=weights.safetensors,k=2 --workdir=runs/mine \\
        --config.data.train=folder:photos/train --config.data.eval=folder:photos/test
    python -m experiments.main --config=configs/pretrained.py:source=hf:timm/vit_base_patch16_224.mae,budget=gpu \\
        --workdir=runs/mae --config.data.train=tfds:imagenet2012:train --config.data.eval=tfds:imagenet2012:validation
    python -m experiments.main --config=configs/pretrained.py:budget=paper --config.teacher.source="weights, the second.onnx" ...

Arguments, separated by commas:
    source=SOURCE   hf:organisation/model, a folder in the hub's layout or one written by weights_convert, a .safetensors, .pth or
                    .onnx file: whatever brh_jax.load reads, of any family (docs/weights.md). --config.teacher.source does as
                    well, and takes a name with commas.
    arch=NAME       refuse weights of another architecture, a name of brh_jax.models.ARCHITECTURES; by default what comes is taken
    k=3 | k=2+3     number of phases, several joined by + (default 2+3)
    budget=NAME     how long, and at what size of images:
        laptop      random crops at 112 px, 360 steps of 8: some minutes on 2 CPU cores for a ViT-Ti (the default). So few crops
                    make a bad Raptor; they show that the way is whole, and what a longer run would measure
        gpu         the teacher's own image size, bfloat16, 78,000 steps of 64: 5 million random crops
        paper       the paper's schedule as configs/dinov2.py has it, 625,000 steps of 64 centre crops in float32
    recipe=NAME     how the blocks are trained, in as many steps:
        joint       as a whole from the first step, by the logarithm of each layer's error, with Muon, the rollouts growing from
                    restarts at the teacher's states (the default; docs/experiments.md has what led to it)
        paper       stage 1, each block on its own phase, then stage 2, joined, by squared errors and AdamW (of budget=paper)

Images are given on the command line; those to train on need no labels. Where the teacher has a linear classifier, its accuracy,
what a Raptor keeps of it and how often the two decide alike are measured, on the way and in the end. Accuracy wants images of the
classifier's classes, in its order: for ImageNet class folders named by wnid. budget=laptop measures on 128 random crops; of 1,000
images, --config.eval.num_images=1000 --config.data.eval_augment=center_crop, a share is sure to about 3 points.

Phases are max cuts, but those of the paper's own teacher (hf:facebook/dinov2-with-registers-base), which are the authors' as in
configs/dinov2.py. A teacher whose patches do not divide 112 px takes another --config.data.image_size; the error names one.

Hardware: laptop 2 CPU cores; gpu one accelerator, its time has not been measured here; paper see docs/running.md, "Cost".
"""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from brh_jax.distill.recipe import BLOCK, joint_recipe
from brh_jax.errors import UserError
from brh_jax.models.registry import architecture
from experiments.configs import check_items, default, numbers, split_argument

_FLAGSHIP = architecture("vitb14_reg").hub_id  # the paper's teacher


def get_config(arg: str = "") -> ConfigDict:
    """The configuration for an argument such as `source=weights.safetensors,k=2,budget=laptop`."""
    options, items = split_argument(arg, source="", arch="", k="2+3", budget="laptop", recipe="")
    check_items("pretrained.py", items, (), "source=SOURCE (without commas), arch=NAME, k=NUMBER, budget=NAME or recipe=NAME")
    if options["budget"] not in BUDGETS:
        raise UserError(f"budget={options['budget']} is unknown: expected budget={', '.join(BUDGETS)}")
    if options["arch"]:
        architecture(options["arch"])
    config = default.get_config().unlock()
    config.teacher.update({"source": options["source"], "arch": options["arch"]})
    if options["source"].partition("@")[0] == f"hf:{_FLAGSHIP}":
        authors_phases(config)
    config.phases.k = numbers("k", options["k"], "phases")
    BUDGETS[options["budget"]](config)
    use_recipe(config, options["recipe"] or ("paper" if options["budget"] == "paper" else "joint"))
    return config.lock()


def sweep(arg: str = "") -> dict[str, dict]:
    """Three seeds; the argument is `get_config`'s."""
    get_config(arg)
    return {f"seed{seed}": {"seed": seed} for seed in range(3)}


def use_recipe(config: ConfigDict, name: str) -> None:
    """Sets how the blocks are trained, in the steps that the configuration has so far."""
    if name not in ("joint", "paper"):
        raise UserError(f"recipe={name} is unknown: expected recipe=joint or recipe=paper")
    if name == "joint":
        steps = config.distill.stage1.steps + config.distill.stage2.steps
        config.distill.stage1.steps = 0
        config.distill.stage2.update(dataclasses.asdict(joint_recipe(steps)))
        config.raptor.update(BLOCK)


def authors_phases(config: ConfigDict) -> None:
    """Phases as the paper's authors cut them."""
    config.phases.update({"method": "recursive_bisection", "min_length": 2})


def laptop(config: ConfigDict) -> None:
    """Few steps on small crops of few images, for a CPU."""
    crops = "random_resized_crop"
    config.data.update({"image_size": 112, "augment": crops, "eval_augment": crops, "threads": 2})
    config.phases.update({"num_images": 128, "batch_size": 16})
    config.distill.batch_size = 8  # of as many crops, more steps are better (docs/experiments.md)
    config.loop.update({"log_every": 20, "save_every": 100})
    config.distill.stage1.update({"steps": 240, "learning_rate": 1e-3, "warmup_steps": 20})
    config.distill.stage2.update({"steps": 120, "learning_rate": 3e-4, "warmup_steps": 10})
    config.distill.validation.update({"times": 5, "num_images": 64})
    config.eval.update({"num_images": 128, "batch_size": 16, "baseline_images": 128})
    config.interventions.update({"num_images": 48, "batch_size": 16})
    config.probe.update({"cache": True, "epochs": 40, "batch_size": 256, "learning_rate": 1e-2, "warmup_steps": 10})
    config.dynamics.update({"num_images": 128, "batch_size": 16})


def gpu(config: ConfigDict) -> None:
    """Five million random crops on one accelerator."""
    config.compute_dtype = "bfloat16"
    config.data.update({"augment": "random_resized_crop", "threads": 16})
    config.distill.batch_size = 64
    config.distill.stage1.update({"steps": 39_000, "warmup_steps": 1250})
    config.distill.stage2.update({"steps": 39_000, "warmup_steps": 1250})


def paper(config: ConfigDict) -> None:
    """The paper's schedule, which is the settings' own."""


BUDGETS: dict[str, Callable[[ConfigDict], None]] = {"laptop": laptop, "gpu": gpu, "paper": paper}
