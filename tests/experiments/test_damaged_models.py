"""A run's own model that is not what was written is refused in one message, whoever reads it."""

import jax
import pytest

import brh_jax
from brh_jax.errors import UserError
from brh_jax.models import store
from brh_jax.train.parallel import make_mesh
from experiments.stage import Context


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_model_of_a_run(tiny_encoder, tmp_path, file):
    folder = store.save(tiny_encoder, tmp_path / "teacher" / "model")
    context = Context(tmp_path, tmp_path / "phases", make_mesh(devices=jax.devices()[:1]))
    assert context.encoder(folder, "teacher").depth == tiny_encoder.depth
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{file} is not what was written.*remove .*teacher, and its stage runs again") as error:
        context.encoder(folder, "teacher")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=f"{file} is not what was written"):
        brh_jax.load(tmp_path / "teacher" / "model")
    (folder / "config.json").write_text("{")  # no encoder any more, and still not "not there yet"
    with pytest.raises(UserError, match="config.json (is|are) not what was written"):
        context.encoder(folder, "teacher")
    with pytest.raises(UserError, match="elsewhere is not there yet"):
        context.encoder(tmp_path / "elsewhere", "teacher")
