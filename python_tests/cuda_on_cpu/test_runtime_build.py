"""What is compiled again when a source changes, and what the builder says when something lacks."""

from __future__ import annotations

import pytest

from cuda_on_cpu.runtime import objects

COMMAND = ["g++", "-fPIC"]


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "CACHE", tmp_path)
    (tmp_path / "inner.h").write_text("int two();\n")
    (tmp_path / "outer.h").write_text('#include "inner.h"\n')
    (tmp_path / "one.cpp").write_text('#include "outer.h"\nint one() { return two() - 1; }\n')
    (tmp_path / "two.cpp").write_text("#include <cstdio>\nint two() { return 2; }\n")
    return [tmp_path / "one.cpp", tmp_path / "two.cpp"]


def build(sources, command=COMMAND):
    made = objects.compile_objects(dict.fromkeys(sources, command))
    return [(path, path.stat().st_mtime_ns) for path in made]


def test_nothing_is_compiled_twice(sources):
    assert build(sources) == build(sources)


def test_only_what_changed_is_compiled(sources):
    one, two = build(sources)
    sources[1].write_text("int two() { return 2 + 0; }\n")
    assert build(sources)[0] == one
    assert build(sources)[1] != two


def test_a_header_changes_what_includes_it(sources):
    one, two = build(sources)
    (sources[0].parent / "inner.h").write_text("int two(); // it is 2\n")
    assert build(sources)[0] != one
    assert build(sources)[1] == two


def test_flags_change_everything(sources):
    before = build(sources)
    after = build(sources, [*COMMAND, "-O1"])
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_a_library_keeps_its_place_until_an_object_changes(sources):
    def linked():
        return objects.link([path for path, _ in build(sources)], "both.so", [])

    before = linked()
    assert linked() == before
    sources[1].write_text("int two() { return 3; }\n")
    assert linked() != before


def test_missing_functions_are_named_once(sources):
    made = [path for path, _ in build(sources[:1])]
    with pytest.raises(RuntimeError, match=r"^half\.so lacks\ntwo\(\)$"):
        objects.link(made, "half.so", ["-Wl,--no-undefined"])


def test_a_compiler_says_what_it_refuses(sources):
    sources[0].write_text("int one() { return }\n")
    with pytest.raises(RuntimeError, match="expected primary-expression"):
        build(sources)
