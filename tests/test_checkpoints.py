"""Which checkpoints count, and what is dropped when a stage goes on from one."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwq_rl.checkpoints import (
    COMPLETE,
    cut_back,
    drop_old,
    mark_complete,
    newest_complete,
    progress_of,
    saved,
    update_of,
    whole,
)
from qwq_rl.runfolder import StageFolder, append_line, read_lines, write_json, write_lines


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    return StageFolder(tmp_path / "1_stage")


def save(folder: StageFolder, update: int, complete: bool = True) -> Path:
    path = folder.checkpoints / f"checkpoint-{update}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    if complete:
        mark_complete(path, {"cpu_seconds": float(update)})
    return path


def record(folder: StageFolder, updates: int, evaluated: tuple[int, ...]) -> None:
    for update in range(1, updates + 1):
        append_line(folder.metrics, {"update": update})
        write_lines(folder.rollouts(update), [{"update": update}])
    for update in evaluated:
        append_line(folder.evaluations, {"update": update})


def recorded(folder: StageFolder) -> tuple[list[int], list[int], list[int]]:
    """The updates of the metrics, the evaluations and the rollouts."""
    rollouts = sorted(int(path.stem.removeprefix("update-")) for path in folder.rollouts(0).parent.glob("*"))
    metrics, evaluations = ([line["update"] for line in read_lines(p)] for p in (folder.metrics, folder.evaluations))
    return metrics, evaluations, rollouts


def test_checkpoints_are_in_the_order_of_their_updates(folder: StageFolder) -> None:
    for update in (100, 20, 3):
        save(folder, update)
    (folder.checkpoints / "final").mkdir()
    (folder.checkpoints / "checkpoint-5.partial").mkdir()

    assert [update_of(path) for path in saved(folder)] == [3, 20, 100]


def test_a_stage_that_has_not_begun_has_no_checkpoint(folder: StageFolder) -> None:
    assert saved(folder) == []
    assert newest_complete(folder) is None


def test_a_checkpoint_without_its_mark_does_not_count(folder: StageFolder) -> None:
    one, two, three = save(folder, 1), save(folder, 2), save(folder, 3, complete=False)

    assert newest_complete(folder) == two
    assert whole(folder) == [one, two]
    assert three.exists()


def test_a_checkpoint_knows_what_the_stage_had_spent(folder: StageFolder) -> None:
    assert progress_of(save(folder, 7)) == {"cpu_seconds": 7.0}


def test_going_on_drops_what_came_after_the_checkpoint(folder: StageFolder) -> None:
    save(folder, 2)
    torn = save(folder, 4, complete=False)
    record(folder, 5, evaluated=(0, 2, 4))

    cut_back(folder)

    assert recorded(folder) == ([1, 2], [0, 2], [1, 2])
    assert not torn.exists()


def test_beginning_again_drops_everything(folder: StageFolder) -> None:
    save(folder, 4, complete=False)
    record(folder, 3, evaluated=(0, 2))
    write_json(folder.path / "preference.json", {"tau": 1.0})

    cut_back(folder)

    assert recorded(folder) == ([], [], [])
    assert not (folder.path / "preference.json").exists()


def test_going_on_keeps_the_scale_of_the_first_round(folder: StageFolder) -> None:
    save(folder, 2)
    write_json(folder.path / "preference.json", {"tau": 1.0})

    cut_back(folder)

    assert (folder.path / "preference.json").exists()


def test_a_line_that_a_kill_left_torn_is_dropped(folder: StageFolder) -> None:
    save(folder, 2)
    record(folder, 2, evaluated=())
    with folder.metrics.open("a") as file:
        file.write('{"update": 3, "lo')

    cut_back(folder)
    append_line(folder.metrics, {"update": 3})

    assert [line["update"] for line in read_lines(folder.metrics)] == [1, 2, 3]


def test_a_stage_that_recorded_nothing_has_nothing_made_up(folder: StageFolder) -> None:
    cut_back(folder)

    assert not folder.metrics.exists()
    assert not folder.evaluations.exists()


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_the_newest_are_kept(folder: StageFolder, keep: int, left: list[int]) -> None:
    for update in (1, 2, 3, 4):
        save(folder, update)

    drop_old(folder, keep)

    assert [update_of(path) for path in saved(folder)] == left


def test_a_half_checkpoint_is_not_among_those_kept(folder: StageFolder) -> None:
    save(folder, 1)
    save(folder, 2, complete=False)

    drop_old(folder, 1)

    assert newest_complete(folder) == folder.checkpoints / "checkpoint-1"


def test_a_checkpoint_loses_its_mark_before_its_weights(folder: StageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    old = save(folder, 1)
    save(folder, 2)
    monkeypatch.setattr("shutil.rmtree", lambda path: None)  # killed just before

    drop_old(folder, 1)

    assert not (old / COMPLETE).exists()
    assert (old / "model.safetensors").exists()
