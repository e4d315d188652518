"""How near a Raptor comes, in one call, and as a figure."""

import numpy as np
import pytest

from brh_jax import distill
from brh_jax.errors import UserError


def test_a_model_agrees_with_itself_and_one_that_stands_still_does_not(tiny_encoder, tiny_images):
    itself = distill.agreement(tiny_encoder, tiny_encoder, tiny_images)
    np.testing.assert_allclose(itself.cosine.patches, 1, atol=1e-5)
    assert itself.r2_all.min() > 0.999 and itself.num_images == 8
    still = tiny_encoder.replace(params=tiny_encoder.params | {"blocks": halved(tiny_encoder.params["blocks"])})
    found = distill.agreement(tiny_encoder, still, tiny_images)
    states = np.asarray(tiny_encoder.trajectory(tiny_images))
    by_hand = np.linalg.norm((states[1:] - np.asarray(still.rollout(states[0]))[1:]).reshape(6, 8, -1), axis=-1).mean(-1)
    np.testing.assert_allclose(found.error_all, by_hand, rtol=1e-4)
    assert "relative_error_all" in repr(found) and "of the norm" in repr(found)


def halved(blocks):
    """Of every block the layer after the heads and the second of the MLP: their branches add half as much."""
    out = {name: part for name, part in blocks.items()}
    out["attn"] = blocks["attn"] | {"proj": {k: v / 2 for k, v in blocks["attn"]["proj"].items()}}
    out["mlp"] = blocks["mlp"] | {"fc2": {k: v / 2 for k, v in blocks["mlp"]["fc2"].items()}}
    return out


def test_the_figure(tiny_encoder, tiny_images):
    found = distill.agreement(tiny_encoder, tiny_encoder, tiny_images)
    figure = found.plot()
    assert [axis.get_title() for axis in figure.axes] == ["cls", "registers", "patches"]
    np.testing.assert_allclose(figure.axes[2].get_lines()[0].get_ydata(), found.r2.patches)
    assert found.plot("cosine").axes[0].get_ylabel() == "cosine"
    with pytest.raises(UserError, match="measure is 'error': expected r2 or cosine"):
        found.plot("error")
    with pytest.raises(UserError, match="no images"):
        distill.agreement(tiny_encoder, tiny_encoder, tiny_images[:0])
