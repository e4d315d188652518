"""Checkpoints: on any mesh, and damaged ones never read silently."""

import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax.errors import UserError
from brh_jax.train.checkpoints import Checkpoints, fingerprints
from brh_jax.train.parallel import make_mesh, shard

WHO = {"partition": "1-3 | 4-6"}


def state(scale=1.0):
    rng = np.random.default_rng(0)
    block = {
        "attn": {"qkv": {"kernel": rng.normal(size=(16, 3, 4, 8)), "bias": rng.normal(size=(3, 4, 8))}},
        "mlp": {"fc1": {"kernel": rng.normal(size=(16, 2, 32))}, "fc2": {"kernel": rng.normal(size=(32, 16))}},
    }
    tree = {"params": {"phase_1": block}, "count": np.int32(7), "half": rng.normal(size=9).astype(jnp.bfloat16)}
    return jax.tree.map(lambda x: jnp.asarray(x * scale, jnp.float32) if x.dtype == np.float64 else jnp.asarray(x), tree)


def on(mesh, scale=1.0):
    return shard(state(scale), mesh)


def save(folder, steps=(1, 2), mesh=None):
    mesh = mesh or make_mesh(2, 2, 2)
    with Checkpoints(folder, WHO) as checkpoints:
        for step in steps:
            checkpoints.save(step, on(mesh, float(step)), loss=1.0 / step)


def restore(folder, mesh=None, who=WHO):
    with Checkpoints(folder, who) as checkpoints:
        return checkpoints.restore(on(mesh or make_mesh(2, 2, 2), 0.0))


@pytest.mark.parametrize("shape, devices", [((1, 1, 1), 1), ((4, 1, 1), 4), ((1, 4, 1), 4), ((1, 1, 8), 8)])
def test_saved_on_eight_devices_restored_on_others(tmp_path, shape, devices):
    save(tmp_path)
    mesh = make_mesh(*shape, devices=jax.devices()[:devices])
    step, found = restore(tmp_path, mesh)
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, found, state(2.0))
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(found)} == {devices}


def test_fingerprints_do_not_depend_on_the_layout_and_see_every_bit():
    expected = fingerprints(state())
    for shape in ((8, 1, 1), (2, 2, 2), (1, 4, 2)):
        assert fingerprints(on(make_mesh(*shape))) == expected
    kernel = np.array(state()["params"]["phase_1"]["mlp"]["fc2"]["kernel"])
    number = fingerprints({"x": jnp.asarray(kernel)})["x"]["number"]
    rng = random.Random(0)
    for _ in range(50):
        changed = kernel.copy()
        changed.view(np.uint32)[rng.randrange(32), rng.randrange(16)] ^= np.uint32(1 << rng.randrange(32))
        assert fingerprints({"x": jnp.asarray(changed)})["x"]["number"] != number
    swapped = kernel.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert fingerprints({"x": jnp.asarray(swapped)})["x"]["number"] != number


def files_of(folder, step):
    return sorted(p for p in (folder / str(step)).rglob("*") if p.is_file())


def damage(path: pathlib.Path, how: str, rng):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "removed":
        path.unlink()
    elif content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "bit flipped", "removed"])
def test_no_damage_goes_unnoticed(tmp_path, how, capsys):
    """Every file of the newest checkpoint in turn: what comes back is the newest as it was, or the one before, said aloud."""
    save(tmp_path / "whole")
    rng, fell_back = random.Random(1), 0
    for number, file in enumerate(files_of(tmp_path / "whole", 2)):
        folder = tmp_path / f"{how}{number}"
        shutil.copytree(tmp_path / "whole", folder)
        damage(folder / file.relative_to(tmp_path / "whole"), how, rng)
        try:
            step, found = restore(folder)
        except UserError as error:
            assert "use another folder" in str(error) or "does not fit" in str(error)
            continue
        jax.tree.map(np.testing.assert_array_equal, found, state(float(step)))
        if step == 1:
            fell_back += 1
            assert "is damaged" in capsys.readouterr().out
            assert not (folder / "2").exists() and (folder / "damaged-2").exists()
        shutil.rmtree(folder)
    assert fell_back >= 3


def test_half_of_a_checkpoint_deleted(tmp_path, capsys):
    save(tmp_path)
    for file in files_of(tmp_path, 2)[::2]:
        file.unlink()
    assert restore(tmp_path)[0] == 1
    assert "damaged" in capsys.readouterr().out
    save(tmp_path, steps=(2,))  # and the step can be saved again
    assert restore(tmp_path)[0] == 2


def test_all_damaged_is_an_error(tmp_path):
    save(tmp_path)
    for step in (1, 2):
        for file in files_of(tmp_path, step):
            file.write_bytes(b"")
    with pytest.raises(UserError, match="every checkpoint in .* was damaged"):
        restore(tmp_path)
    assert restore(tmp_path) is None


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    losses = {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.3, 5: 0.35}
    with Checkpoints(tmp_path, WHO, keep_last=2, keep_best=1) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, state(), loss)
    with Checkpoints(tmp_path, WHO) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]


def test_another_configuration_or_shape_is_refused(tmp_path):
    save(tmp_path)
    with pytest.raises(UserError, match="was made with .*1-3.*this run has .*other"):
        restore(tmp_path, who={"partition": "other"})
    with (
        Checkpoints(tmp_path, WHO) as checkpoints,
        pytest.raises(UserError, match=r"does not fit: count has shape \[\] there and \[2\] here"),
    ):
        checkpoints.restore(state() | {"count": jnp.zeros(2, jnp.int32)})


TWO = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import jax.numpy as jnp
from brh_jax.train.checkpoints import Checkpoints
from brh_jax.train.parallel import make_mesh, shard, to_host

def on(scale):
    return shard({"blocks": {"phase_1": {"mlp": {"fc2": {"kernel": scale * jnp.ones((16, 16))}}}}}, make_mesh(1, -1, 1))

with Checkpoints(sys.argv[3], {}) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, on(float(step)))
with Checkpoints(sys.argv[3], {}) as checkpoints:
    read = checkpoints._manager.restore
    def broken(step, args):
        if jax.process_index() == 1 and step == 2 and "about" not in args:
            read(step, args=args)  # its collective part is done; then its own disk fails
            raise OSError("input/output error")
        return read(step, args=args)
    checkpoints._manager.restore = broken
    step, state = checkpoints.restore(on(0.0))
    print("restored", step, float(to_host(state)["blocks"]["phase_1"]["mlp"]["fc2"]["kernel"].mean()), checkpoints.steps())
"""


@pytest.mark.slow
def test_what_one_process_cannot_read_none_takes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", TWO, port]
    both = [
        subprocess.Popen([*command, str(i), tmp_path / "run"], env=environment, stdout=-1, stderr=-2, text=True) for i in range(2)
    ]
    for process in both:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
        assert "restored 1 1.0 [1]" in out
        assert "is damaged" in out
    assert (tmp_path / "run" / "damaged-2").is_dir()
