"""Which file a command runs and with what context."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.header import Header, NotGguf, read_header
from engine.limits import Memory
from ondevice import model
from ondevice.model import NoModel, choose_context, find_model
from registry import Registry, Spec


def test_the_header_says_what_the_library_reads(gguf: Path) -> None:
    import gguf as library

    path = gguf / "tiny-f16.gguf"
    fields = library.GGUFReader(path).fields
    found = read_header(path)
    assert found.context == fields["llama.context_length"].contents() == 4096
    assert found.cache_bytes == 2 * 2 * 2 * (16 + 16)  # bytes, layers, key-value heads, key and value


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04" + b"\xff" * 60, b"GGUF\x03" + b"\xff" * 60])
def test_what_is_no_gguf_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(NotGguf, match=r"bad\.gguf is no GGUF model"):
        read_header(tmp_path / "bad.gguf")


def test_the_context_is_the_models_own_unless_memory_or_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "ram", lambda: Memory(8 << 30, 16 << 30, "RAM"))
    assert choose_context(Header(2048, 1000), None) == 2048
    assert choose_context(Header(131072, 1000), None) == model.MOST_CONTEXT
    assert choose_context(Header(131072, 1 << 20), None) == 2048  # a quarter of 8 GiB holds as many
    assert choose_context(Header(131072, 1 << 20), 100_000) == 100_000
    assert choose_context(Header(512, 1 << 40), None) == 256
    with pytest.raises(ValueError, match="--context 600: this model takes 1 to 512 tokens"):
        choose_context(Header(512, 1000), 600)


@pytest.fixture
def home(gguf: Path, tmp_path: Path) -> Path:
    """A registry with a model, two exports of it (the newer one named `b/gguf`), and a corpus."""
    registry = Registry(tmp_path / "home")
    with registry.build(Spec("toy", 1, "model", {})) as build:
        (build.out / "config.json").write_text("{}")
        made = build.publish()
    for name in ("a", "b"):
        with registry.build(Spec("gguf", 1, "gguf", {"name": name}, {}, {"model": made})) as build:
            for kind in ("f16", "q8_0"):
                shutil.copyfile(gguf / "tiny-f16.gguf", build.out / f"{name}-{kind}.gguf")
            registry.tag(f"{name}/gguf", build.publish().key)
    registry.tag("b/sft", made.key)
    with registry.build(Spec("toy", 1, "corpus", {"name": "text"})) as build:
        (build.out / "text").write_text("x")
        registry.tag("b/corpus", build.publish().key)
    return tmp_path / "home"


def test_a_model_is_found_by_file_folder_ref_key_or_as_the_newest_export(gguf: Path, home: Path) -> None:
    at = str(home)
    assert find_model(str(gguf / "tiny-f16.gguf"), None, at).path == gguf / "tiny-f16.gguf"
    assert find_model(str(gguf), None, at).path == gguf / "tiny-f16.gguf"
    assert find_model("a/gguf", None, at).path.name == "a-f16.gguf"
    assert find_model("a/gguf", "q8_0", at).path.name == "a-q8_0.gguf"
    release = home.parent / "release"
    release.mkdir()
    for name in ("Tiny-F16.gguf", "Tiny-Q8_0.gguf"):  # as releases and hubs have it
        shutil.copyfile(gguf / "tiny-f16.gguf", release / name)
    assert find_model(str(release), None, at).path.name == "Tiny-F16.gguf"
    assert find_model(str(release), "q8_0", at).path.name == "Tiny-Q8_0.gguf"
    newest = max(Registry(home).artifacts(), key=lambda one: (one.kind == "gguf", one.created, one.key)).key
    for name in (None, "b/sft"):
        found = find_model(name, None, at)
        assert found.path.parent.name == newest
        assert found.name in ("a/gguf", "b/gguf")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("b/corpus", None, "b/corpus is a corpus, which answers nothing: export a model first"),
        ("b/ggu", None, "did you mean .*b/gguf.*no file or folder"),
        ("a/gguf", "q4_0", "--type q4_0: .* has a-f16.gguf, a-q8_0.gguf"),
    ],
)
def test_what_is_no_model_is_refused_with_what_to_do(name: str, kind: str | None, message: str, home: Path) -> None:
    with pytest.raises(NoModel, match=message):
        find_model(name, kind, str(home))


def test_a_type_is_found_as_the_hub_spells_it(gguf: Path, tmp_path: Path) -> None:
    for name in ("Smol-135M.Q4_1.gguf", "Smol-135M-Q8_0.gguf"):
        shutil.copyfile(gguf / "tiny-f16.gguf", tmp_path / name)
    assert find_model(str(tmp_path), "q4_1", None).path.name == "Smol-135M.Q4_1.gguf"
    assert find_model(str(tmp_path), "Q8_0", None).path.name == "Smol-135M-Q8_0.gguf"


def test_an_empty_registry_says_how_to_get_a_model(tmp_path: Path) -> None:
    with pytest.raises(NoModel, match=r"no gguf artifact is under .*--model FILE\.gguf"):
        find_model(None, None, str(tmp_path / "none"))


def test_a_release_can_be_talked_with(gguf: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    with registry.build(Spec("release", 1, "release", {})) as build:
        shutil.copyfile(gguf / "tiny-f16.gguf", build.out / "Tiny-F16.gguf")
        registry.tag("b/release", build.publish().key)
    assert find_model("b/release", None, str(tmp_path / "home")).path.name == "Tiny-F16.gguf"
