"""Everything once, small: digits, a 12-layer ViT trained here, Raptors with k = 2 and 3, a page of results.

    python -m experiments.main --config=configs/quickstart.py --workdir=runs/quickstart

recipe=paper, the argument, trains the Raptors as the paper does, in three times the steps; see configs/pretrained.py.

Hardware: 2 CPU cores, four to six minutes. Data: scikit-learn's digits, nothing is downloaded.
Expect: teacher above 95 %, phases of 4 + 8 or 5 + 7 and about 3 + 4 + 5 layers, R² of the last state about 0.9, probes within 3
points.
"""

from ml_collections import ConfigDict

from experiments.configs import check_items, default, pretrained, split_argument


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart."""
    options, items = split_argument(arg, recipe="joint")
    check_items("quickstart.py", items, (), "recipe=NAME")
    config = default.get_config().unlock()
    config.teacher.source = "train"
    config.teacher.vit.update({"dim": 64, "depth": 12, "num_heads": 2, "mlp_dim": 256, "patch_size": 2})
    config.teacher.vit.update({"num_registers": 4, "drop_path": 0.1})
    # By AdamW, at 2e-3, as good a ViT takes 600 steps.
    config.teacher.train.update({"optimizer": "muon", "steps": 240, "learning_rate": 0.03, "final_learning_rate": 1e-3})
    config.teacher.train.update({"vector_learning_rate": 2e-3, "warmup_steps": 20, "batch_size": 64, "weight_decay": 0.3})
    config.teacher.train.update({"label_smoothing": 0.1, "remat": "full"})
    config.data.update({"train": "digits:train", "eval": "digits:test", "image_size": 8})
    config.data.update({"augment": "random_resized_crop", "crop_scale": (0.9, 1.0), "flip": False})
    config.phases.update({"k": (2, 3), "num_images": 360})
    config.data.threads = 1  # images of 8 x 8 pixels: more threads only wait for each other
    config.distill.update({"batch_size": 64, "remat": "full"})
    config.loop.update({"log_every": 20, "save_every": 200})
    if options["recipe"] == "joint":
        config.distill.stage1.steps, config.distill.stage2.steps = 0, 132
    else:
        config.distill.stage1.update({"steps": 200, "learning_rate": 2e-3, "warmup_steps": 20})
        config.distill.stage2.update({"steps": 200, "learning_rate": 1e-3, "warmup_steps": 20})
    pretrained.use_recipe(config, options["recipe"])
    config.eval.update({"num_images": 360, "baseline_images": 360})
    config.probe.update({"train": "digits:train", "eval": "digits:test", "cache": True})
    config.probe.update({"epochs": 40, "batch_size": 256, "learning_rate": 1e-2, "warmup_steps": 10})
    config.interventions.update({"num_images": 144, "batch_size": 144})
    config.dynamics.update({"num_images": 360, "batch_size": 72})
    return config.lock()
