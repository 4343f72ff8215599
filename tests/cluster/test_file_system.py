"""When files are far."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.file_system import file_system_of, is_far

MOUNTS = r"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 21 0:41 / /models rw - nfs4 server:/models rw
41 40 0:42 / /models/a\040b rw - fuse.s3fs s3fs rw
42 21 8:2 / /models2 rw - xfs /dev/sdb rw
44 21 0:44 / /größe rw - lustre mgs:/ rw
43 42 0:43 / /models2 rw - ceph mon:/ rw
"""


@pytest.mark.parametrize(
    ("folder", "found", "far"),
    [
        ("/home/m", "ext4", False),
        ("/models/m", "nfs4", True),
        ("/models/a b/m", "fuse.s3fs", True),
        ("/models2", "ceph", True),
        ("/models3", "ext4", False),
        ("/größe/m", "lustre", True),
    ],
)
def test_a_folder_is_on_the_file_system_mounted_nearest_above_it(tmp_path, folder, found, far):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system_of(Path(folder), mounts) == found
    assert is_far(found) == far


def test_where_the_system_does_not_tell_its_mounts_files_are_near(tmp_path):
    assert not is_far(file_system_of(Path("/models"), tmp_path / "none"))
