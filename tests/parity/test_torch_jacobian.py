"""Jacobians of a randomly initialised reference layer by torch.func against those of its conversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from references import hidden_states, make

from brh_jax.dynamics.influence import jacobian_structure, token_influence
from brh_jax.dynamics.jacobian import jacobian_block, jacobian_eigenvalues, jacobian_singular_values
from weights_convert import convert

LAYER = 1
PRECISIONS = {"float32": (torch.float32, np.float32, 1e-4), "float64": (torch.float64, np.float64, 1e-9)}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_dinov2_layer(precision, tmp_path):
    in_torch, dtype, tolerance = PRECISIONS[precision]
    with jax.enable_x64(precision == "float64"):
        model = make("dinov2", tmp_path, dtype=in_torch, image_size=28)
        images = np.random.default_rng(0).normal(size=(1, 28, 28, 3)).astype(dtype)
        state = hidden_states(model, images)[LAYER]
        layer = model.encoder.layer[LAYER]
        expected = torch.func.jacrev(lambda x: layer(x[None])[0])(torch.tensor(state[0])).detach().numpy()
        _, tokens, dim = state.shape
        matrix = expected.reshape(tokens * dim, tokens * dim)
        scale = np.abs(expected).max()

        encoder, _ = convert(str(tmp_path), dtype=dtype)
        system, arguments = encoder.at_size(28).system(), (jnp.asarray(state), LAYER)
        assert tokens == system.layout.num_tokens == 5

        def same(found, expected):
            assert found.dtype in (dtype, np.result_type(dtype, np.complex64))
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)

        same(jacobian_block(system, *arguments, "patches", "patches")[0], expected[1:, :, 1:])
        same(jacobian_block(system, *arguments, "patches", "cls")[0], expected[0, :, 1:])
        same(jacobian_singular_values(system, *arguments, 8).values[0], np.linalg.svd(matrix)[1][:8])
        same(jacobian_singular_values(system, *arguments, token="cls").values[0], np.linalg.svd(expected[0, :, 0])[1])
        same(token_influence(system, *arguments, num_probes=None)[0], np.sqrt((expected**2).sum((1, 3))))
        structure = jacobian_structure(system, *arguments, num_probes=None)
        same(structure.from_identity[0], np.linalg.norm(matrix - np.eye(len(matrix))))
        same(structure.antisymmetric[0], np.linalg.norm(matrix - matrix.T) / 2)
        # All of them: those in the cloud of the others are the last to converge.
        moduli = np.sort(np.abs(np.linalg.eigvals(matrix)))[::-1]
        same(np.abs(jacobian_eigenvalues(system, *arguments, 4, num_steps=len(matrix)).values[0]), moduli[:4])
