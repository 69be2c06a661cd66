"""What a YAML text is read as: values, lines, and the defects that are named with their line."""

import math

import pytest

from kproxy.sources import yaml_documents as module
from kproxy.sources.yaml_documents import MAX_DEPTH, ManifestSyntaxError, resolve, yaml_documents


def values(text: str) -> list[object]:
    return [document.value for document in yaml_documents(text)]


def faults(text: str) -> list[tuple[int, str]]:
    return [(fault.line, fault.reason) for document in yaml_documents(text) for fault in document.faults]


def refused(text: str) -> tuple[int, str]:
    with pytest.raises(ManifestSyntaxError) as error:
        values(text)
    return error.value.line, error.value.reason


def test_documents_come_one_after_the_other_without_the_empty_ones() -> None:
    assert values("---\n---\na: 1\n---\n# nothing\n---\n[2]\n--- text\n") == [{"a": 1}, [2], "text"]
    assert values("") == []


def test_documents_and_their_mappings_know_their_lines() -> None:
    first, second = yaml_documents("a: 1\n---\n\nitems:\n- b: 2\n- deep:\n    deeper: 3\n")
    assert (first.line, second.line) == (1, 4)
    assert isinstance(second.value, dict)
    items = second.value["items"]
    assert [second.lines[id(each)] for each in items] == [5, 6]
    assert id(items[1]["deep"]) not in second.lines


def test_text_that_is_no_yaml_is_refused_with_its_line() -> None:
    line, reason = refused("a: 1\nb: [1\nc: 2\n")
    assert line in (2, 3)
    assert "flow sequence" in reason
    assert refused("a: 1\n\tb: 2\n")[0] == 2
    assert refused("a: \x00\n")[0] == 1


def test_documents_before_a_syntax_error_are_read() -> None:
    documents = yaml_documents("a: 1\n---\n]\n")
    assert next(documents).value == {"a": 1}
    with pytest.raises(ManifestSyntaxError):
        next(documents)


@pytest.mark.parametrize("text", [".inf", "-.inf", ".nan", "+.INF"])
def test_numbers_that_json_has_not_are_named(text: str) -> None:
    assert faults(f"a: 1\nb: {text}\n") == [(2, f"{text} is not a number that JSON has")]
    assert values(f"a: 1\nb: {text}\n") == [{"a": 1, "b": None}]


def test_the_largest_number_is_one() -> None:
    assert values("1.7976931348623157e+308") == [1.7976931348623157e308]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("~", None),
        ("yes", True),
        ("Off", False),
        ("0b11", 3),
        ("-0b11", -3),
        ("017", 15),
        ("-0x1F", -31),
        ("1_000", 1000),
        ("+7", 7),
        ("0", 0),
        ("09", "09"),
        ("1.5", 1.5),
        ("1e3", "1e3"),
        ("text", "text"),
        ("-", "-"),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_1(text: str, value: object) -> None:
    found = resolve(text)
    assert (found, type(found)) == (value, type(value))


def test_what_is_not_finite_is_a_float() -> None:
    assert resolve("-.inf") == -math.inf
    assert isinstance(found := resolve(".nan"), float)
    assert math.isnan(found)


def test_quoted_scalars_are_text() -> None:
    assert values("['1', \"true\", ! 2, !!str 3]") == [["1", "true", "2", "3"]]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: 1\na: 2\n", 2, "the key 'a' is there twice"),
        ("a: 1\n8: 2\n", 2, "the key '8' is not text: put it in quotes"),
        ("a: 1\non: 2\n", 2, "the key 'on' is not text: put it in quotes"),
        ("a: !!int x\n", 1, "'x' is not what its tag 'tag:yaml.org,2002:int' says"),
        ("a: !own x\n", 1, "the tag '!own' is not supported"),
        ("a: !own {}\n", 1, "the tag '!own' is not supported"),
        ("a: !!map []\n", 1, "the tag 'tag:yaml.org,2002:map' is not supported"),
        ("a: !!seq {}\n", 1, "the tag 'tag:yaml.org,2002:seq' is not supported"),
        ("a: *b\n", 1, "the alias *b has no anchor before it that is complete"),
        ("a: &b [*b]\n", 1, "the alias *b has no anchor before it that is complete"),
        ("x: 1\na:\n  <<: 5\n", 3, "`<<` takes a mapping or a list of mappings"),
    ],
)
def test_defects_are_named_with_their_line(text: str, line: int, reason: str) -> None:
    assert faults(text) == [(line, reason)]


@pytest.mark.parametrize("text", ["a: !!map {b: !!seq [1]}\n", "a: ! {b: ! [1]}\n", "a: {b: [!!int 1]}\n"])
def test_tags_that_say_what_is_there_are_no_defects(text: str) -> None:
    assert (faults(text), values(text)) == ([], [{"a": {"b": [1]}}])


@pytest.mark.parametrize("key", ["[b]", "{b: 1}", "[[b], {c: d}]", "&x [b]"])
def test_a_collection_as_a_key_is_the_only_defect_and_the_next_lines_are_read(key: str) -> None:
    text = f"a: 1\n? {key}\n: 2\nc: 3\nd: [4]\n"
    assert faults(text) == [(2, "a key is not text")]
    assert values(text) == [{"a": 1, "?": 2, "c": 3, "d": [4]}]


def test_anchors_repeat_scalars_and_collections() -> None:
    assert values("a: &x 1\nb: *x\nc: &y [2]\nd: *y\n") == [{"a": 1, "b": 1, "c": [2], "d": [2]}]


def test_own_keys_come_before_merged_ones_and_the_first_merged_before_the_next() -> None:
    text = "- &p {a: 1, b: 1}\n- &q {b: 2, c: 2}\n- {a: 0, <<: [*p, *q]}\n- {<<: *p, d: 4}\n"
    assert faults(text) == []
    (found,) = values(text)
    assert isinstance(found, list)
    assert found[2:] == [{"a": 0, "b": 1, "c": 2}, {"a": 1, "b": 1, "d": 4}]


def test_depth_is_bounded() -> None:
    assert values("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert refused("\n" + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))[0] == 2


def test_aliases_that_expand_too_far_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ALIASED", 20)
    assert values("a: &x [abc, def]\nb: *x\n")  # 1 + 2 + 2 nodes of 3 more characters each
    line, reason = refused("a: &x {abcdef: ghijkl}\nb: *x\nc: *x\n")
    assert line == 3
    assert "more than 20 characters" in reason
