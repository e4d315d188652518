"""The paper's setting: DINOv2 ViT-B/14 with registers, distilled on ImageNet-1k into a Raptor with k = 3.

    python -m experiments.main --config=configs/dinov2.py --workdir=runs/dinov2 --config.data.data_dir=/data/tensorflow_datasets
    python -m experiments.main --config=configs/dinov2.py:arch=vits14_reg,k=2
    python -m experiments.main --config=configs/dinov2.py:arch=vits14,runlocal --workdir=runs/local \\
        --config.teacher.source=weights.onnx --config.data.train=folder:photos/train --config.data.eval=folder:photos/test

    python -m experiments.sweep --config=configs/dinov2.py:k=2+3+4 --workdir=runs/seeds     # the same with three seeds

Arguments, separated by commas:
    arch=NAME   vits14, vitb14, vitl14, vitg14, each also with _reg (default vitb14_reg); weights come from the hub
    k=3 | k=2+3 number of phases, several joined by +
    recipe=joint | recipe=paper   how the blocks are trained, see configs/pretrained.py; the paper's way unless runlocal
    runlocal    random crops at 112 px, few steps: a real teacher on a folder of images on 2 CPU cores, k = 2 and 3 unless given;
                budget=laptop of configs/pretrained.py, which is for any teacher. Give the images as in the third command, and the
                weights where there is no hub.

The probe starts from Meta's classifier, as the paper's does: dinov2_vitb14_reg4_linear_head.pth is looked for in the current
directory, in ~/.cache/brh_jax/heads ($BRH_JAX_CACHE/heads) and where torch.hub keeps downloads; a run that lacks it says at once
where to get it. --config.probe.head= starts from zeros.

Hardware: an accelerator for the full run, every device that JAX sees is used; its time has not been measured here.
Phases are cut as the paper's authors cut them, by recursive bisection into phases of two layers or more, at the largest threshold
that gives k of them; `--config.phases.method=max_cut` or `contrast_cut` cut otherwise, and the page shows what each gives.
Expect, by the paper, for k = 3: 83.0 % on ImageNet-1k by a linear probe (teacher 84.5 %), phases 1-7 | 8-10 | 11-12 (at a
threshold of 0.10; the exact max cut of the authors' matrix is 1-5 | 6-9 | 10-12), R² about 0.73, of the last layer about
one mean of all numbers (`r2_one_mean` of the stage agreement).
runlocal: docs/experiments.md has what recipe=paper reached with it on 34 photographs; too few steps for a good Raptor.
"""

from ml_collections import ConfigDict

from brh_jax.models.registry import architecture
from experiments.configs import check_items, default, numbers, pretrained, split_argument
from weights_convert.heads import published_head


def get_config(arg: str = "") -> ConfigDict:
    """The configuration for an argument such as `arch=vits14,k=2`."""
    options, items = split_argument(arg, arch="vitb14_reg", k="", recipe="")
    local = "runlocal" in items
    check_items("dinov2.py", items, ("runlocal",), "arch=NAME, k=NUMBER, recipe=NAME or runlocal")
    arch = architecture(options["arch"])
    config = default.get_config().unlock()
    config.teacher.update({"source": f"hf:{arch.hub_id}", "arch": options["arch"]})
    config.data.update({"train": "tfds:imagenet2012:train", "eval": "tfds:imagenet2012:validation"})
    pretrained.authors_phases(config)
    config.phases.k = numbers("k", options["k"] or ("2+3" if local else "3"), "phases")
    config.probe.update({"train": "tfds:imagenet2012:train", "eval": "tfds:imagenet2012:validation"})
    config.probe.head = published_head(options["arch"])  # the paper's probe is fine-tuned from it
    if local:
        pretrained.laptop(config)
        # ImageNet is not at hand: no probe, unless the command line names labelled images.
        config.probe.update({"train": "", "eval": "", "head": ""})
    pretrained.use_recipe(config, options["recipe"] or ("joint" if local else "paper"))
    return config.lock()


def sweep(arg: str = "") -> dict[str, dict]:
    """Three seeds, as the paper's tables have; the argument is `get_config`'s."""
    get_config(arg)
    return {f"seed{seed}": {"seed": seed} for seed in range(3)}
