"""The quickstart cut down to seconds.

python -m experiments.main --config=tests/experiments/tiny.py
"""

from experiments.configs import quickstart


def get_config(arg=""):
    config = quickstart.get_config("recipe=paper").unlock()
    config.teacher.vit.update({"dim": 16, "depth": 4, "mlp_dim": 32, "num_registers": 1})
    config.teacher.train.update({"steps": 10, "warmup_steps": 2, "batch_size": 32})
    config.phases.update({"num_images": 32, "batch_size": 16, "bootstrap": 0})
    config.distill.batch_size = 16
    config.distill.validation.update({"times": 2, "num_images": 20})
    config.loop.update({"log_every": 2, "save_every": 4})
    config.distill.stage1.update({"steps": 8, "warmup_steps": 2})
    config.distill.stage2.update({"steps": 8, "warmup_steps": 2})
    config.eval.update({"num_images": 40, "batch_size": 16, "baselines": (), "baseline_images": 40})
    config.probe.update({"num_train": 64, "num_eval": 40, "epochs": 4, "batch_size": 32})
    config.interventions.num_images = 0
    config.dynamics.update({"num_images": 20, "batch_size": 16, "tangent_images": 0, "num_directions": 2, "num_probes": 2})
    config.dynamics.update({"num_exponents": 2, "num_values": 2, "rank": 4, "extrapolated_steps": 40, "influence_probes": 1})
    return config.lock()
