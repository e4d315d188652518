"""Every setting there is, with the paper's values. Other configurations start from this one and change what they need.

Not run by itself: it names no teacher and no data.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The defaults. Takes no argument."""
    if arg:
        raise ValueError(f"configs/default.py takes no argument, got {arg!r}")
    config = ConfigDict()
    config.seed = 0
    config.stages = ("teacher", "phases", "distill", "probes", "interventions", "dynamics", "report")
    config.compute_dtype = "float32"  # of matrix products; parameters, residual stream and losses are float32
    config.tensorboard = False  # metrics also as TensorBoard events, beside metrics.jsonl
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: all devices that are left

    # source: hf:organisation/model, a file or folder of weights, "train" for a ViT trained here from scratch, or random:ARCH for
    # an architecture by name with random parameters, as a control.
    # arch: refuse weights of any other architecture; with "train" the sizes are given in teacher.vit.
    config.teacher = ConfigDict({"source": "", "arch": ""})

    # What images look like to the model. 0 and () keep what comes with the teacher's weights.
    config.data = ConfigDict(
        {
            "train": "",  # tfds:NAME:SPLIT, folder:PATH, idx:PATH or digits:SPLIT
            "eval": "",
            "data_dir": "",  # of TFDS
            "image_size": 0,
            "augment": "center_crop",  # or random_resized_crop, for training
            "eval_augment": "center_crop",  # random_resized_crop gives more views of few images
            # Keep the teacher's states of the training images on disk, up to so many GB; 0: run the teacher inside the step.
            # For small sets without augmentation only: the paper's would take 13 TB.
            "states_gb": 0.0,
            "crop_scale": (0.08, 1.0),
            "crop_ratio": (3 / 4, 4 / 3),
            "flip": True,
            "threads": 8,  # that decode images and read ahead
            "workers": 0,  # processes that decode instead, with so many threads each
        }
    )

    # method: max_cut, contrast_cut, recursive_bisection (k follows from threshold), random_contiguous, random_fragmented
    # (max_cut's phase lengths, dealt out), or given (lengths, such as (7, 3, 2)).
    config.phases = ConfigDict(
        {
            "method": "max_cut",
            "k": (3,),
            "min_length": 1,
            "threshold": 0.1,
            "lengths": (),
            "num_images": 10_000,
            "batch_size": 64,
            "seed": 0,
            "bootstrap": 1000,  # resamples of the images that the partition is cut from again; 0: none
            "metrics": ("cosine", "cka"),  # that it is cut by then; a run's own partitions are always those of the cosine
        }
    )

    # unshared: a control with the same number of parameters; narrow: every layer a block of its own, with a narrower feed-forward
    # layer (k must be large enough for the attention); shallow: k blocks applied once each, for the last state of each phase.
    config.raptor = ConfigDict(
        {"mlp": "swiglu", "mlp_ratio": 4.0, "depth_scaling": True, "layer_scale_init": 1e-5, "unshared": ""}
    )

    stage = {
        "steps": 312_500,
        "learning_rate": 3e-4,
        "final_learning_rate": 1e-6,
        "warmup_steps": 10_000,
        "weight_decay": 1e-4,
        "clip_norm": 1.0,
        "noise": 0.0,
    }
    config.distill = ConfigDict(
        {
            "batch_size": 64,
            "remat": "dots",  # what the backward pass keeps of a block: none (everything), dots, full (nothing)
            "pieces": 1,  # parts that a batch goes through in, gradients accumulated
            "log_every": 50,
            "save_every": 5000,
            "keep_last": 2,  # checkpoints of each training
            "keep_best": 1,  # and those of the lowest training loss since the one before
            # token weights are those of (cls, registers, patches), () for the plain mean; stage 1 uses them for the last block
            # only. teacher_forcing: annealed, giving way to autoregression over the first share `annealed` of the steps, or
            # throughout.
            "stage1": {**stage, "token_weights": (0.34, 0.33, 0.33), "teacher_forcing": "annealed", "annealed": 0.25},
            # stage2.steps = 0 leaves stage 2 out
            "stage2": {**stage, "token_weights": (0.45, 0.10, 0.45)},
        }
    )
    # Agreement with the teacher, beside that of simpler predictions fitted to its states of training images: mean, linear,
    # linear_blocks (see brh_jax/distill/baselines.py). more: further sets of images that it is measured on.
    config.eval = ConfigDict(
        {
            "num_images": 10_000,
            "batch_size": 64,
            "more": (),
            "baselines": ("mean", "linear", "linear_blocks"),
            "baseline_images": 1000,
        }
    )

    # Linear probe on [cls, mean patch]; train empty: none. Data are labelled and may be others than the ones above.
    config.probe = ConfigDict(
        {
            "train": "",
            "eval": "",
            "num_train": 0,  # at most so many images, 0 for all
            "num_eval": 0,
            # classifier to start from: .pth or .safetensors with weight [classes, features] and bias; "teacher": its own, of a
            # teacher trained here; empty: zeros
            "head": "",
            "cache": False,  # features computed once: for small sets, without random crops
            "epochs": 15,
            "batch_size": 512,
            "learning_rate": 1e-4,
            # Several: the one that does best on the held_out share of the training set, trained again on all of it.
            "learning_rates": (),
            "held_out": 0.1,
            "final_learning_rate": 1e-6,
            "warmup_steps": 100,
            "weight_decay": 1e-2,
            "clip_norm": 1.0,
        }
    )
    # Linear segmentation on patches; train empty: none. brh_jax/probes/segmentation.py explains.
    config.segmentation = ConfigDict(
        {
            "train": "",  # ade20k:PATH:training, masks:PATH (images/ and masks/) or tfds:NAME:SPLIT
            "eval": "",
            "num_train": 0,
            "num_eval": 0,
            "num_classes": 0,  # where the data do not say it
            "image_size": 518,
            "crop_scale": (0.5, 1.0),
            "epochs": 10,
            "batch_size": 32,
            "eval_batch_size": 8,
            "learning_rate": 1e-3,
            "learning_rates": (),
            "held_out": 0.1,
            "final_learning_rate": 1e-6,
            "warmup_steps": 100,
            "weight_decay": 1e-2,
            "clip_norm": 1.0,
        }
    )
    # Linear depth on [patch, cls]; train empty: none. brh_jax/probes/depth.py explains.
    config.depth = ConfigDict(
        {
            "train": "",  # nyu:PATH:train, depths:PATH (images/ and depth/) or tfds:nyu_depth_v2:train
            "eval": "",
            "num_train": 0,
            "num_eval": 0,
            "min_depth": 0.001,  # metres
            "max_depth": 10.0,
            "num_bins": 256,
            "variance_focus": 0.85,
            "silog_weight": 10.0,
            "crop_size": (420, 560),
            "jitter": 0.2,
            "eval_size": (480, 640),
            "eval_crop": (45, 471, 41, 601),  # Eigen's; () for the whole image
            "epochs": 25,
            "batch_size": 128,
            "eval_batch_size": 8,
            "learning_rate": 1e-3,
            "learning_rates": (),
            "held_out": 0.1,
            "final_learning_rate": 1e-6,
            "warmup_steps": 100,
            "weight_decay": 1e-3,
            "clip_norm": 1.0,
        }
    )
    # k-NN and logistic regression on [cls, mean patch] of labelled images, centre crops; train empty: none.
    config.quick = ConfigDict(
        {
            "train": "",
            "eval": "",
            "num_train": 0,
            "num_eval": 0,
            "neighbours": (20,),
            "temperature": 0.07,
            "strengths": (0.01, 0.1, 1.0, 10.0),  # C of logistic regression, chosen on the held_out share of the training set
            "held_out": 0.1,
        }
    )
    # Layers swapped, deleted and repeated, Raptors' blocks in the teacher's place; num_images 0: none.
    config.interventions = ConfigDict(
        {
            "images": "",  # as data.train names them; empty: data.eval. With labels there are accuracies
            "num_images": 256,
            "batch_size": 32,
            "num_layers": (1, 2, 3),  # replaced at a time
            "parts": ("layer", "attention", "mlp"),  # of the layers, whole or half of them
            "num_swaps": 132,  # of each sort at most, drawn evenly over distances; 0: all (132 single ones with 12 layers)
            "num_permutations": 10_000,
        }
    )
    # Directions, ranks and basins of all images; perturbations, exponents and Jacobians of the first tangent_images of them (0:
    # none of these); linear models of the first linear_images. The rest is explained in brh_jax/dynamics/portrait.py.
    config.dynamics = ConfigDict(
        {
            "num_images": 1000,
            "batch_size": 32,
            "tangent_images": 8,
            "linear_images": 64,
            "relative_sizes": (1e-3, 1e-2, 1e-1),
            "num_directions": 8,
            "num_exponents": 8,
            "num_values": 8,
            "num_probes": 16,
            "num_angles": 4,
            "rank": 32,
            "extrapolated_steps": 200,
            "influence_probes": 4,  # products per token for the matrices of influence; 0: none
        }
    )
    return config.lock()
