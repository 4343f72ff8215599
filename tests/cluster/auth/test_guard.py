import pytest

from cluster.auth.guard import Guard
from cluster.auth.key_file import KeyEntry, add_key, key_hash
from protos.errors import BadConfig, PermissionDenied, RateLimited, Unauthenticated


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "keys.yaml"
    add_key(path, KeyEntry(name="alice", sha256=key_hash("a"), requests_per_minute=1))
    add_key(path, KeyEntry(name="root", sha256=key_hash("r"), admin=True))
    return path


@pytest.mark.parametrize("sent", [None, "", "a", "Basic YTph", "Bearer", "Bearer ", "Bearer b", "Bearer " + "a" * 600])
def test_nobody_gets_in_without_a_key_of_the_file(file, sent):
    with pytest.raises(Unauthenticated):
        Guard(file).caller(sent)


def test_a_key_tells_who_calls(file):
    assert Guard(file).caller("bearer a").name == "alice"
    assert Guard(file).caller("Bearer r", for_admin=True).name == "root"
    with pytest.raises(PermissionDenied, match="'alice'"):
        Guard(file).caller("Bearer a", for_admin=True)


def test_a_changed_file_counts_within_a_second_and_quotas_stay_used(file, clock):
    guard = Guard(file, clock)
    with guard.caller("Bearer a").request():
        pass
    file.write_text(f"- {{name: alice, sha256: {key_hash('new')}, requests_per_minute: 1}}\n")
    clock.now += 1
    with pytest.raises(Unauthenticated):
        guard.caller("Bearer a")
    with pytest.raises(RateLimited), guard.caller("Bearer new").request():
        pass


@pytest.mark.parametrize("text", ["{", "- name: alice", "", "# keys\n", None])
def test_a_file_gone_wrong_changes_nothing(file, clock, text):
    guard = Guard(file, clock)
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    clock.now += 1
    assert guard.caller("Bearer a").name == "alice"
    with pytest.raises(Unauthenticated):
        guard.caller("Bearer b")


def test_a_start_with_a_wrong_file_fails(tmp_path):
    with pytest.raises(BadConfig):
        Guard(tmp_path / "none.yaml")


def test_without_a_file_everybody_may(tmp_path):
    assert Guard(None).caller(None, for_admin=True).is_admin
