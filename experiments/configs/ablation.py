"""What each part of the distillation is worth (paper, section 5), and its controls, in one sweep on one teacher.

    python -m experiments.sweep --config=configs/ablation.py --workdir=runs/ablation --jobs=2
    python -m experiments.sweep --config=configs/ablation.py:dinov2,arch=vits14_reg --workdir=runs/ablation_s \\
        --config.data.data_dir=DIR
    python -m experiments.tables runs/ablation --by=name

Arguments, separated by commas:
    quickstart     the base configuration: digits and a ViT trained here once, by the run "teacher" (default)
    dinov2         configs/dinov2.py, which the other arguments go to; whose probe starts from Meta's published head
    pretrained     configs/pretrained.py, which the other arguments go to; the teacher's own classifier is read off the Raptors
    seeds=3        how many of each

Rows 1 to 5 add one part after the other: teacher forcing alone, autoregression that it gives way to, depth scaling, the last
block's weights of token types, stage 2. "head as it is" reads the teacher's own classifier off the Raptor, "probe" fine-tunes it:
the paper's last row is the probe of row 5. Row 5b has no stage 2 but its steps in stage 1. The other rows change one thing of row
5: the feed-forward layer (GELU for SwiGLU), no depth scaling, and the partition: random phases of consecutive layers, and the
phases' layers dealt out at random, a new draw for each seed.

Hardware: quickstart 31 runs, two to three minutes of one CPU core each; dinov2 an accelerator,
30 runs of configs/dinov2.py.
Expect, by the paper, for k = 3 on ImageNet-1k: 3.9, 72.7, 75.2, 76.7, 82.4 % with the head as it is, 83.0 % fine-tuned.
"""

from ml_collections import ConfigDict

from experiments.configs import check_items, dinov2, number, pretrained, quickstart, split_argument

_BASES = {"quickstart": quickstart, "dinov2": dinov2, "pretrained": pretrained}
# Settings that a row changes of the row before it; the first of the whole.
WITHOUT = {
    "distill.stage1.teacher_forcing": "throughout",
    "raptor.depth_scaling": False,
    "distill.stage1.token_weights": (),
    "distill.stage2.steps": 0,
}
_PARTS = ("1-teacher-forcing", "2-autoregression", "3-depth-scaling", "4-token-weights", "5-stage-2")


def get_config(arg: str = "") -> ConfigDict:
    """The whole: every part on, the base configuration's settings, by the paper's recipe, whose parts are in question."""
    base, rest, _ = _options(arg)
    config = _BASES[base].get_config(rest if "recipe=" in rest else ",".join(filter(None, (rest, "recipe=paper")))).unlock()
    config.stages = ("teacher", "phases", "distill", "probes")
    if base == "quickstart":
        config.phases.k = (3,)
        config.probe.head = "teacher"
    return config.lock()


def sweep(arg: str = "", config: ConfigDict | None = None) -> dict[str, dict]:
    """The runs, all of one teacher."""
    _, _, seeds = _options(arg)
    config = config or get_config(arg)
    runs, teacher = {}, {}
    if config.teacher.source == "train":
        runs["teacher"] = {"stages": ("teacher",)}
        teacher = {"teacher.source": "{workdir}/teacher/teacher/model"}
    for seed in range(seeds):
        for name, changes in rows(config).items():
            # Random partitions are drawn anew for each seed.
            runs[f"{name}-seed{seed}"] = teacher | {"seed": seed, "phases.seed": seed} | changes
    return runs


def rows(config: ConfigDict) -> dict[str, dict]:
    """Row of the table -> settings that it changes of the whole."""
    off, found = dict(WITHOUT), {}
    for name, setting in zip(_PARTS, (*WITHOUT, ""), strict=True):
        found[name] = dict(off)
        off.pop(setting, None)
    steps = config.distill.stage1.steps + config.distill.stage2.steps
    return found | {
        "5b-stage-1-for-as-long": {"distill.stage1.steps": steps, "distill.stage2.steps": 0},
        "6-gelu": {"raptor.mlp": "gelu"},
        "6-no-depth-scaling": {"raptor.depth_scaling": False},
        "7-random-contiguous": {"phases.method": "random_contiguous"},
        "7-random-fragmented": {"phases.method": "random_fragmented"},
    }


def _options(arg: str) -> tuple[str, str, int]:
    """Base configuration, its own argument, number of seeds."""
    found, items = split_argument(arg, seeds="3")
    base = items.pop(0) if items and items[0] in _BASES else "quickstart"
    if base == "quickstart":
        check_items("ablation.py", items, (), f"{', '.join(_BASES)} first, and seeds=NUMBER")
    return base, ",".join(items), number("seeds", found["seeds"], "seeds")
