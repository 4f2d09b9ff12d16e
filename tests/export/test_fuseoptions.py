"""fuseoptions.py: what both engines are told."""

from __future__ import annotations

from isblk.export.fuseoptions import Caching, Counters, Engine, MountOptions


def test_the_source_survives_libfuses_option_parser() -> None:
    assert "fsname=iqn.2026-11.x:a_b_c/0" in MountOptions("iqn.2026-11.x:a,b\u00fcc/0").for_libfuse()
    assert MountOptions("a b\\c\n").shown_source == "a_b_c_"


def test_options_are_those_of_mount() -> None:
    assert {"ro", "allow_other", "default_permissions"} <= MountOptions("x", read_only=True, allow_other=True).for_libfuse()
    assert MountOptions("x").for_libfuse() == {"default_permissions", "fsname=x", "subtype=isblk"}
    assert "ro" in MountOptions("x").for_libfuse(read_only=True)
    assert {"noexec", "noatime"} <= MountOptions("x", kernel=frozenset(("noexec", "noatime"))).for_libfuse()


def test_words_of_the_command_line_are_values() -> None:
    assert [engine.value for engine in Engine] == ["direct", "pyfuse3"]
    assert Caching("direct_io") is Caching.NONE and Caching("writeback") is Caching.WRITEBACK


def test_counters_begin_at_nothing() -> None:
    assert set(vars(Counters()).values()) == {Counters().held()} == {0}
