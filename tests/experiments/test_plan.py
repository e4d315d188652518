"""Plans are made from shapes alone."""

import pytest

from experiments import plan


@pytest.mark.slow
def test_the_largest_teacher_compiles_for_eight_devices():
    """ViT-g/14: parameters and state are split eight ways, and the step compiles."""
    whole = plan.plan("vitg14", (10, 10, 10, 10), (8, 1, 1), 16)
    split = plan.plan("vitg14", (10, 10, 10, 10), (1, 8, 1), 16, remat="full")
    assert whole["teacher parameters"] == split["teacher parameters"] == 1_136_479_232
    key = "parameters and state, GB per device"
    assert whole[key] == pytest.approx(4 * (1.1365 + 3 * 0.1514), rel=0.02)
    assert split[key] == pytest.approx(whole[key] / 8, rel=0.05)
    assert split["temporaries, GB per device"] < 10


def test_wrong_plans_say_so(capsys):
    assert plan.main(["--arch=vitz14", "--partition=6,6"]) == 2
    assert "unknown architecture 'vitz14'" in capsys.readouterr().err
    assert plan.main(["--arch=vits14", "--partition=6,5", "--mesh=1,8,1"]) == 2
    assert "covers 11 layers, the teacher has 12" in capsys.readouterr().err
    assert plan.main(["--arch=vits14", "--partition=6,6", "--batch_size=0"]) == 2
    assert "batch_size is 0: expected a positive number" in capsys.readouterr().err
    assert plan.main(["--arch=vits14", "--partition=6,6", "--mesh=8"]) == 2
    assert "expected three numbers" in capsys.readouterr().err
