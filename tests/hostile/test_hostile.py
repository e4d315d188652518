"""Hostile inputs (files, settings, processes): each gives one clear line, or the right result."""

import re

import pytest
from hostile import api, docs, fidelity, images, pretrained, probes, robust, running, weights

from brh_jax.errors import UserError

CASES = [
    pytest.param(case, id=f"{topic.__name__.rpartition('.')[-1]}: {case.name}")
    for topic in (weights, images, running, probes, fidelity, pretrained, robust, api, docs)
    for case in topic.CASES
]


def test_there_are_sixty_and_more():
    assert len(CASES) >= 60


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_input(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if case.says is None:
        case.act(tmp_path)
        return
    with pytest.raises(UserError) as caught:
        case.act(tmp_path)
    message = str(caught.value)
    assert re.search(case.says, message), message
    assert len(message.splitlines()) == 1, message
