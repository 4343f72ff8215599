import json

import pytest

from cluster.auth.key_file import KeyEntry, add_key, key_hash, new_key, parse_keys, read_key_file
from protos.errors import BadConfig

ALICE = KeyEntry(name="alice", sha256=key_hash("a"), requests_per_minute=5)
HASH = key_hash("a")

# text of a file -> what the refusal says
WRONG = {
    "{": "expected YAML or JSON",
    "alice": "the file: Input should be a valid list",
    "- name: alice": "0.sha256: Field required",
    "- {name: alice, sha256: secret}": "0.sha256: String should match pattern",
    f"- {{name: alice, sha256: {HASH}, requests: 5}}": "0.requests: Extra inputs are not permitted",
    f"- {{name: alice, sha256: {HASH}, streams: 0}}": "0.streams: Input should be greater than or equal to 1",
    f"- {{name: a, sha256: {HASH}}}\n- {{name: a, sha256: {key_hash('b')}}}": "every name once",
    f"- {{name: a, sha256: {HASH}}}\n- {{name: b, sha256: {HASH}}}": "every sha256 once",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_file_is_refused_without_repeating_what_it_holds(text):
    with pytest.raises(BadConfig) as caught:
        parse_keys(text, "keys.yaml")
    assert WRONG[text] in caught.value.message
    assert "secret" not in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadConfig, match=r"auth.keys_file: expected a readable file, found .*keys.yaml"):
        read_key_file(tmp_path / "keys.yaml")


def test_json_is_read_as_well(tmp_path):
    (tmp_path / "keys.json").write_text(json.dumps([ALICE.model_dump()]))
    assert read_key_file(tmp_path / "keys.json") == (ALICE,)


def test_adding_a_key_keeps_what_the_file_says_besides(tmp_path):
    file = tmp_path / "keys.yaml"
    add_key(file, ALICE)
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("# who may\n" + file.read_text().rstrip("\n"))
    add_key(file, KeyEntry(name="bob", sha256=key_hash("b")))
    assert file.read_text().startswith("# who may\n")
    assert [each.name for each in read_key_file(file)] == ["alice", "bob"]
    assert [each.name for each in tmp_path.iterdir()] == ["keys.yaml"]


@pytest.mark.parametrize("text", [f'[{{"name": "bob", "sha256": "{HASH}"}}]', f"- {{name: alice, sha256: {HASH}}}"])
def test_a_key_that_cannot_be_added_leaves_the_file_alone(tmp_path, text):
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(BadConfig):
        add_key(file, KeyEntry(name="alice", sha256=key_hash("c")))
    assert file.read_text() == text


def test_no_two_keys_are_alike_and_their_hash_is_not_them():
    first, second = new_key(), new_key()
    assert first != second
    assert len(first) > 40
    assert first not in key_hash(first)


def test_a_file_that_everybody_may_write_is_warned_of(tmp_path, caplog):
    file = tmp_path / "keys.yaml"
    add_key(file, ALICE)
    read_key_file(file)
    assert not caplog.records
    file.chmod(0o666)
    read_key_file(file)
    assert "everybody on this machine may write" in caplog.text
