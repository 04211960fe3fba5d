"""A sealed directory: whatever happens to its files is noticed."""

import hashlib
import json

import pytest

from jaxpeft.rundir import manifest


@pytest.fixture
def sealed(tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "a.bin").write_bytes(bytes(range(8)))
    (tmp_path / "empty").touch()
    (tmp_path / "sub" / "deep" / "b.bin").write_bytes(b"content")
    manifest.seal(tmp_path)
    return tmp_path


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_manifest_holds_size_and_hash_of_every_file(sealed):
    entries = json.loads((sealed / "manifest.json").read_text())
    assert entries == {
        name: [len(content), hashlib.blake2b(content).hexdigest()]
        for name, content in {
            "a.bin": bytes(range(8)),
            "empty": b"",
            "sub/deep/b.bin": b"content",
        }.items()
    }
    assert manifest.verify(sealed) == []


def test_flipped_bits_are_noticed(sealed):
    for path in files(sealed):
        content = path.read_bytes()
        # All bits of the small files, and one or two of each byte of the manifest.
        for bit in range(0, 8 * len(content), 1 if len(content) < 64 else 7):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert manifest.verify(sealed), (path.name, bit)
        path.write_bytes(content)
    assert manifest.verify(sealed) == []


def test_truncation_growth_and_deletion_are_named(sealed):
    for path in files(sealed):
        content = path.read_bytes()
        mutations = [content + b"x"] + [content[:-1]] * bool(content)
        for mutation in mutations:
            path.write_bytes(mutation)
            assert any(path.name in problem for problem in manifest.verify(sealed))
        path.unlink()
        assert any(f"{path.name} is missing" in p for p in manifest.verify(sealed))
        path.write_bytes(content)
    assert manifest.verify(sealed) == []


def test_foreign_files_and_links_are_named(sealed):
    (sealed / "sub" / "new").touch()
    assert manifest.verify(sealed) == ["sub/new does not belong to it"]
    (sealed / "sub" / "new").unlink()

    (sealed / "a.bin").rename(sealed.parent / "a.bin")
    (sealed / "a.bin").symlink_to(sealed.parent / "a.bin")
    assert manifest.verify(sealed) == ["a.bin is not a regular file"]


def test_a_dangling_link_is_a_problem_and_no_crash(sealed):
    (sealed / "a.bin").unlink()
    (sealed / "a.bin").symlink_to("nowhere")
    assert "a.bin cannot be read" in manifest.verify(sealed)[0]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "{", "\0", "[" * 100_000, '{"a.bin": 3}', '{"a.bin": [8]}'],
)
def test_malformed_manifests_are_problems(sealed, content):
    (sealed / "manifest.json").write_text(content)
    assert manifest.verify(sealed)


def test_nothing_outside_the_directory_is_opened(sealed):
    outside = sealed.parent / "outside"
    outside.write_bytes(b"secret")
    entry = [6, hashlib.blake2b(b"secret").hexdigest()]
    path = sealed / "manifest.json"
    entries = {**json.loads(path.read_text()), "../outside": entry}
    path.write_text(json.dumps(entries))
    assert manifest.verify(sealed) == ["../outside is missing"]


def test_unsealed_empty_and_absent_directories_have_problems(tmp_path):
    assert manifest.verify(tmp_path) == ["manifest.json is missing"]
    assert manifest.verify(tmp_path / "absent") == ["manifest.json is missing"]
    (tmp_path / "file").touch()
    assert "cannot be read" in manifest.verify(tmp_path / "file")[0]


def test_sealing_again_follows_the_files(sealed):
    (sealed / "a.bin").write_bytes(b"other")
    (sealed / "manifest.json.partial").write_text("left by a process that died")
    manifest.seal(sealed)
    assert manifest.verify(sealed) == []
