"""A process that dies, hangs or is orphaned must cost its own job and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitgs.errors import UsageError
from vitgs.executor import machine_lock as locking
from vitgs.executor.local import Died, LocalExecutor, TimedOut
from vitgs.executor.machine_lock import machine_lock


def double(number: int) -> int:
    return 2 * number


def process_id() -> int:
    return os.getpid()


def leave() -> None:
    os._exit(3)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def wrong_use() -> None:
    raise UsageError("a rule", given=1, remedy="do it")


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalExecutor]:
    monkeypatch.setattr(locking, "lock_file", lambda: tmp_path / "lock")
    with LocalExecutor(2) as made:
        yield made


def test_each_job_has_a_fresh_process(executor: LocalExecutor) -> None:
    processes = [future.result() for future in [executor.submit(process_id) for _ in range(3)]]
    assert len({*processes, os.getpid()}) == 4
    assert executor.submit(double, 21).result() == 42


def test_a_job_that_dies_fails_alone(executor: LocalExecutor) -> None:
    left, killed, well = executor.submit(leave), executor.submit(kill_self), executor.submit(double, 1)
    with pytest.raises(Died, match="exit status 3"):
        left.result()
    with pytest.raises(Died, match="SIGKILL") as caught:
        killed.result()
    assert caught.value.oom
    assert well.result() == 2


def test_a_job_over_its_limit_is_ended(executor: LocalExecutor) -> None:
    with pytest.raises(TimedOut, match=r"given: 0\.3 s"):
        executor.submit_limited(0.3, sleep, 600.0).result()


def test_known_errors_keep_their_type(executor: LocalExecutor) -> None:
    with pytest.raises(UsageError, match="a rule; given: 1; do it"):
        executor.submit(wrong_use).result()


def test_cancelling_ends_what_runs(executor: LocalExecutor) -> None:
    running = [executor.submit(sleep, 600.0) for _ in range(4)]
    while not all(future.running() for future in running[:2]):
        time.sleep(0.01)
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() or isinstance(future.exception(), Died) for future in running)


def test_killing_the_parent_ends_the_children(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, pathlib, sys, time
            from vitgs.executor.local import LocalExecutor

            def stay(folder):
                pathlib.Path(folder, f"{os.getpid()}.child").touch()
                time.sleep(600)

            if __name__ == "__main__":
                executor = LocalExecutor(2)
                [executor.submit(stay, sys.argv[1]) for _ in range(2)]
                time.sleep(600)
            """
        )
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(root)}
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*.child"))) < 2:
            assert time.monotonic() < deadline
            assert parent.poll() is None
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    children = [int(file.stem) for file in tmp_path.glob("*.child")]
    deadline = time.monotonic() + 30
    while any(_lives(child) for child in children):
        assert time.monotonic() < deadline, "children outlived their parent"
        time.sleep(0.05)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        pass
    if Path("/proc/self").exists():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_measuring_excludes_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "lock_file", lambda: tmp_path / "lock")
    told: list[str] = []
    with machine_lock(alone=False) as first, machine_lock(alone=False) as second:
        assert first
        assert second
        with machine_lock(alone=True, waiting=lambda: told.append("wait"), given_up=lambda: bool(told)) as held:
            assert not held
    assert told == ["wait"]
    with machine_lock(alone=True) as held:
        assert held
