"""Which checkpoints count, and what is dropped when a stage goes on from one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stage_runs import differences

from qwq_rl.run_folder.checkpoints import (
    COMPLETE,
    PARTIAL,
    DiskFull,
    cut_back,
    damage_of,
    drop_old,
    mark_complete,
    newest_complete,
    progress_of,
    saved,
    told_when_full,
    update_of,
    whole,
)
from qwq_rl.run_folder.files import StageFolder, append_line, read_lines, write_json, write_lines


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


def test_half_written_files_that_a_kill_left_are_removed(folder: StageFolder) -> None:
    write = "import os, signal, sys; from pathlib import Path; from qwq_rl.run_folder import files as runfolder"
    write += "; runfolder.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    write += "; runfolder.write_lines(Path(sys.argv[1]), [{}])"
    save(folder, 2)
    record(folder, 2, evaluated=())
    for path in (folder.metrics, folder.rollouts(2)):
        subprocess.run([sys.executable, "-c", write, str(path)], check=False)
    names = {path.name for path in folder.path.rglob("*")}
    assert sum(name.startswith(".") for name in names) == 2

    cut_back(folder)

    assert {path.name for path in folder.path.rglob("*")} == {name for name in names if not name.startswith(".")}


def test_half_a_result_that_a_kill_left_is_removed(folder: StageFolder) -> None:
    save(folder, 2)
    (folder.checkpoints / PARTIAL).mkdir()
    (folder.checkpoints / PARTIAL / "model.safetensors").write_bytes(b"wei")

    cut_back(folder)

    assert [path.name for path in folder.checkpoints.iterdir()] == ["checkpoint-2"]


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


@pytest.mark.parametrize(
    ("tear", "damage"),
    [
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda path: os.truncate(path / "model.safetensors", 3), "model.safetensors has 3 bytes, and 7 were written"),
        (lambda path: (path / "rank" / "states.pt").unlink(), "rank/states.pt is missing"),
        (lambda path: (path / COMPLETE).write_text(""), "its COMPLETE cannot be read"),
        (lambda path: (path / COMPLETE).unlink(), "it has no COMPLETE"),
    ],
)
def test_a_checkpoint_that_lost_something_is_not_whole(folder: StageFolder, tear: Any, damage: str) -> None:
    before = save(folder, 1)
    path = save(folder, 2, complete=False)
    (path / "rank").mkdir()
    (path / "rank" / "states.pt").write_bytes(b"states")
    mark_complete(path, {})
    assert damage_of(path) is None

    tear(path)

    assert damage_of(path) == damage
    assert newest_complete(folder) == before


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_it_used(
    folder: StageFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    save(folder, 2)
    torn = save(folder, 4)
    record(folder, 5, evaluated=())
    os.truncate(torn / "model.safetensors", 0)

    cut_back(folder)

    assert recorded(folder)[0] == [1, 2]
    assert not torn.exists()
    said = capsys.readouterr().out
    assert "checkpoint-4 is damaged (model.safetensors has 0 bytes, and 7 were written)" in said
    assert "what came after checkpoint-2 is made again" in said


def test_a_half_checkpoint_is_removed_without_a_word(folder: StageFolder, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder, 2, complete=False)

    cut_back(folder)

    assert saved(folder) == []
    assert capsys.readouterr().out == ""


def test_a_checkpoint_that_says_nothing_of_its_files_counts(folder: StageFolder) -> None:
    path = save(folder, 2, complete=False)
    (path / COMPLETE).write_text('{"cpu_seconds": 1.0}')

    assert newest_complete(folder) == path


def test_everything_is_on_the_disk_before_the_mark_is_there(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(folder, 2, complete=False)
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watched(number: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{number}")).name, (path / COMPLETE).exists()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", watched)
    mark_complete(path, {})

    assert synced[:3] == [("model.safetensors", False), ("checkpoint-2", False), ("checkpoints", False)]
    assert synced[3][0].startswith(".COMPLETE")
    assert synced[4:] == [("checkpoint-2", True)]


def test_a_checkpoint_that_somebody_removes_meanwhile_is_not_whole(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(folder, 2)
    read = Path.read_bytes

    def removed_first(this: Path) -> bytes:
        (path / COMPLETE).unlink()
        return read(this)

    monkeypatch.setattr(Path, "read_bytes", removed_first)

    assert damage_of(path) == f"{path / COMPLETE} is gone"


def test_an_error_of_another_kind_passes_as_it_is(folder: StageFolder) -> None:
    half = save(folder, 2, complete=False)

    with pytest.raises(PermissionError), told_when_full(folder):
        raise PermissionError(errno.EACCES, "no")

    assert half.exists()


def test_a_full_disk_is_found_behind_the_error_it_led_to(folder: StageFolder) -> None:
    save(folder, 1)

    def fail() -> None:
        try:
            Path("/dev/full").write_text("x" * 100_000)
        finally:
            raise RuntimeError("the trainer failed")

    with pytest.raises(DiskFull, match="No space left on device") as told, told_when_full(folder):
        fail()

    assert told.value.exit_status == 1


SAVERS = {
    "torch": "import torch; torch.save({'a': torch.zeros(50_000)}, half / 'optimizer.pt')",
    "safetensors": "import torch, safetensors.torch as st; st.save_file({'a': torch.zeros(50_000)}, half / 'model')",
    "text": "(half / 'state.json').write_text('x' * 200_000)",
    "mark": "room = open(half / 'room', 'wb', 0)\nwhile room.write(b'x' * 4096) == 4096: pass\nmark_complete(half, {})",
}
FILL = """
import sys
from pathlib import Path
from qwq_rl.run_folder.checkpoints import mark_complete, told_when_full
from qwq_rl.errors import UserError
from qwq_rl.run_folder.files import StageFolder
folder = StageFolder(Path(sys.argv[1]))
def checkpoint(update):
    path = folder.checkpoints / f"checkpoint-{update}"
    path.mkdir(parents=True)
    return path
good = checkpoint(1)
(good / "model").write_bytes(b"weights")
mark_complete(good, {"cpu_seconds": 1.0})
half = checkpoint(2)
try:
    with told_when_full(folder):
        exec(sys.argv[2])
except UserError as error:
    print(error)
print(sorted(path.name for path in folder.checkpoints.iterdir()), (good / "model").read_bytes())
"""


@pytest.mark.parametrize("how", SAVERS)
def test_a_full_disk_is_one_message_and_loses_nothing(how: str) -> None:
    mounted = ["unshare", "-rm", "sh", "-c"]
    if subprocess.run([*mounted, "mount -t tmpfs none /mnt"], capture_output=True, check=False).returncode:
        pytest.skip("no small file system can be mounted here (unshare -rm)")

    script = f'mount -t tmpfs -o size=60k none /mnt; exec "{sys.executable}" -c "$0" /mnt/stage "$1"'
    done = subprocess.run([*mounted, script, FILL, SAVERS[how]], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/mnt/stage: the disk is full ("), done.stdout
    assert "goes on from checkpoint-1, which is as it was" in done.stdout
    assert done.stdout.endswith("['checkpoint-1'] b'weights'\n")


RECIPE = """\
kind: sft
model: {new: tiny}
data: [{source: tiny/math_demonstrations, limit: 40}]
batch: 4
max_length: 128
update: {lr: 1.0e-3}
steps: 4
evaluate: {every: 4, sets: [tiny/tuning], samples: 1, limit: 1}
checkpoint: {every: 1, keep: 3}
"""


@pytest.mark.slow
def test_a_stage_goes_on_after_a_full_disk_as_if_nothing_had_been(tmp_path: Path) -> None:
    mounted = ["unshare", "-rm", "sh", "-c"]
    if subprocess.run([*mounted, "mount -t tmpfs none /mnt"], capture_output=True, check=False).returncode:
        pytest.skip("no small file system can be mounted here (unshare -rm)")
    (tmp_path / "0_stage.yaml").write_text(RECIPE)
    train = f"{sys.executable} -m qwq_rl.train {tmp_path}/0_stage.yaml --run"
    script = f"""
        {train} {tmp_path}/undisturbed; size=$(du -sk {tmp_path}/undisturbed/0_stage/checkpoints/checkpoint-4 | cut -f1)
        mount -t tmpfs -o size=$((size * 5 / 2))k none /mnt
        {train} /mnt/run; echo status $?; (cd /mnt/run/0_stage/checkpoints; echo checkpoint-*)
        mount -o remount,size=900m /mnt
        {train} /mnt/run; echo status $?; cp -r /mnt/run {tmp_path}/run
    """

    done = subprocess.run([*mounted, script], capture_output=True, text=True, check=False)

    second = done.stdout.split("status ")[1]
    assert second.startswith("1\ncheckpoint-1 checkpoint-2\n"), done.stdout + done.stderr
    assert "error: /mnt/run/0_stage: the disk is full" in done.stderr
    assert "it goes on from checkpoint-2, which is as it was" in done.stderr
    assert "Traceback" not in done.stderr
    folders = [StageFolder(tmp_path / name / "0_stage") for name in ("undisturbed", "run")]
    assert list(differences(*folders)) == []


def test_a_file_that_may_not_grow_is_a_full_disk_too(folder: StageFolder) -> None:
    limited = ["sh", "-c", 'ulimit -f 8; exec "$0" -c "$1" "$2" "$3"', sys.executable, FILL, str(folder.path)]

    done = subprocess.run([*limited, SAVERS["text"]], capture_output=True, text=True, check=False)

    assert "the disk is full ([Errno 27] File too large" in done.stdout, done.stderr
    assert done.stdout.endswith("['checkpoint-1'] b'weights'\n")
