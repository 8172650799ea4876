"""Names of a checkpoint laid over those of a model."""

from __future__ import annotations

import pytest

from mpocompress.user.name_alignment import align_names, common_prefixes, map_names, rename, strip_wrappers


def always(name: str, other: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("names", "others", "wanted"),
    [
        (["a.w"], ["a.w"], ("", "")),
        (["m.a.w", "m.b.w"], ["a.w", "b.w"], ("m.", "")),
        (["a.w", "b.w"], ["m.a.w", "m.b.w"], ("", "m.")),
        (["m._orig_mod.a.w"], ["a.w"], ("m.", "")),
        (["a.w"], ["a.w", "m.a.w"], ("", "")),
        (["a.w"], ["x.y.a.w", "z.a.w"], ("", "z.")),
        (["x.y.a.w", "z.a.w"], ["a.w"], ("z.", "")),
        (["a.w"], ["b.v"], None),
        ([], ["b.v"], None),
    ],
)
def test_the_prefix_that_most_share_is_found_the_shortest_of_equals(
    names: list[str], others: list[str], wanted: tuple[str, str] | None
) -> None:
    assert common_prefixes(names, others, always) == wanted


def test_only_what_fits_votes_and_is_aligned() -> None:
    names, others = ["a", "b"], ["x.a", "x.b", "y.a"]

    assert align_names(names, others, lambda name, other: other == "y.a") == {"a": "y.a"}
    assert map_names(names, others, ("", "x.")) == {"a": "x.a", "b": "x.b"}
    assert map_names(names, others, None) == {}


def test_a_name_without_the_prefix_has_no_other() -> None:
    assert rename("m.a", ("m.", "")) == "a"
    assert rename("n.a", ("m.", "")) is None
    assert map_names(["n.a"], ["a"], ("m.", "")) == {}


def test_what_wrappers_put_into_names_is_seen_through() -> None:
    assert strip_wrappers("_fsdp_wrapped_module.a._checkpoint_wrapped_module.w._orig_mod") == "a.w"
