"""What launch.status says of a task."""

from pathlib import Path

from launch.status import after


def test_how_a_training_stands_that_slurm_has_forgotten(tmp_path: Path) -> None:
    begun = ["2026-01-31T12:00:00Z", "7_1", "n1", "begin", "none"]
    assert after(tmp_path, [], None) == "not begun"
    assert after(tmp_path, [begun], None) == "killed"
    assert after(tmp_path, [begun, [*begun[:3], "end", "137"]], None) == "failed (137)"
    assert after(tmp_path, [begun, [*begun[:3], "end", "75"]], None) == "stopped"
    (tmp_path / "requeue").touch()
    assert after(tmp_path, [begun, [*begun[:3], "end", "0"]], None) == "stopped"
    assert after(tmp_path, [begun], "CANCELLED") == "cancelled"
    (tmp_path / "scores.json").touch()
    assert after(tmp_path, [begun], "CANCELLED") == "done"
