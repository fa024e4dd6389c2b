"""The folders of jobs: bounded, swept, removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfswa.runtime.service.disk import DiskFull, JobFolders, bytes_below
from tfswa.runtime.service.runner import job_folder


def filled_folders(data: Path, **sizes: int) -> None:
    for job, size in sizes.items():
        folder = job_folder(data, job) / "stems"
        folder.mkdir(parents=True)
        (folder / "vocals.wav").write_bytes(bytes(size))


def test_what_jobs_hold_is_bounded(tmp_path: Path) -> None:
    filled_folders(tmp_path, a=3000, b=4000)
    (job_folder(tmp_path, "a") / "link").symlink_to("/")
    folders = JobFolders(tmp_path, 10_000)
    assert 7000 <= folders.used() < 7100  # and the link itself
    folders.check(2000)
    with pytest.raises(DiskFull, match=r"jobs hold 0\.0 of 1e-05 GB and .* free, which is too little"):
        folders.check(4000)
    with pytest.raises(DiskFull):
        JobFolders(tmp_path, 1 << 62).check(1 << 61)  # no disk is as large


def test_what_belongs_to_no_job_is_removed(tmp_path: Path) -> None:
    filled_folders(tmp_path, a=1, b=2, c=3)
    folders = JobFolders(tmp_path, 100)
    assert sorted(folders.sweep({"b"})) == ["a", "c"]
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["b"]
    folders.remove(["b", "never"])
    assert bytes_below(tmp_path / "jobs") == 0
    assert bytes_below(tmp_path / "missing") == 0
