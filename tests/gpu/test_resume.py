"""On a GPU: a killed run goes on bit by bit with full_determinism, and within the bfloat16 band without it."""

import signal

import pytest

from tests.interrupted import finish, start
from tests.kill_test import figures

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
MOMENT = ("chatsft.guarded_trainer.GuardedTrainer.training_step", 15)


@pytest.mark.parametrize(("determinism", "tolerance"), [("true", 0.0), ("false", 0.01)])
def test_a_run_killed_in_a_step_goes_on(tmp_path, determinism, tolerance):
    options = ["use_cpu=false", "bf16=true", f"full_determinism={determinism}", "resume_from_checkpoint=true"]
    assert finish(start(tmp_path / "straight", *options), 300) == 0
    assert finish(start(tmp_path / "killed", *options, moment=MOMENT), 300) == -signal.SIGKILL
    assert finish(start(tmp_path / "killed", *options), 300) == 0
    straight, killed = ([log["loss"] for log in figures(tmp_path / name) if "loss" in log] for name in ("straight", "killed"))
    assert len(straight) == 12
    assert killed == pytest.approx(straight, abs=tolerance, rel=0)
