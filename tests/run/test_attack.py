"""The attack of scripts/attack in small: kills, full disks, two starts, damaged files, hostile inputs."""

from __future__ import annotations

import shutil
import sys

import pytest

from scripts.attack import damage, hostile, interruptions
from scripts.attack.scene import Scene

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="the attack needs Linux and a C compiler"
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    with Scene(tmp_path_factory.mktemp("attack") / "scene") as scene:
        yield scene


@pytest.fixture(scope="module")
def expected(scene):
    contents, operations, _ = interruptions.reference(scene)
    return contents, operations


def test_a_run_killed_at_any_kind_of_file_operation_ends_as_if_undisturbed(scene, expected):
    contents, _ = expected
    places = interruptions.one_of_each_kind(scene.story)
    assert set(places) == {"mkdir", "open", "write", "fsync", "rename", "unlink", "truncate"}
    count, failures = interruptions.kill_at_operations(scene, contents, places.values())
    assert failures == []
    assert count == len(places)


def test_a_full_disk_is_told_and_loses_nothing(scene, expected):
    contents, operations = expected
    assert interruptions.fill_disks(scene, contents, [2, operations // 2]) == (2, [])


def test_a_real_disk_that_is_full_is_told_and_loses_nothing(scene, expected):
    contents, _ = expected
    try:
        count, failures = interruptions.fill_real_disks(scene, contents, 2)
    except interruptions.Unmountable as error:
        pytest.skip(str(error))
    assert failures == []
    assert count > 0


def test_of_two_starts_one_does_the_run(scene, expected):
    contents, operations = expected
    assert interruptions.two_starts(scene, contents, [1, operations // 2]) == (2, [])


def test_damaged_files_are_named_or_harmless(scene, expected):
    count, named, failures = damage.damage_files(scene, 4, seed=1)
    assert failures == []
    assert (count, named > 0) == (4, True)


def test_hostile_inputs_are_refused_in_one_line(scene, expected):
    count, failures = hostile.hostile_inputs(scene, every=8)
    assert failures == []
    assert count > 15
