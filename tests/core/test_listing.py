"""From keys to directories: pages of either kind of listing say the same, and it is what the keys say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lazyfs.core.listing import (
    MAX_COMPONENT_BYTES,
    Difference,
    Entry,
    PageFacts,
    Slice,
    ancestors,
    component_problem,
    diff,
    file_entry,
    slice_of_directory,
    slices_of_keys,
)
from lazyfs.core.types import ObjectInfo

Tree = dict[str, dict[str, Entry]]
"""What exists: directory (path ending in `/`, or empty) to entry name to entry."""
Limits = Callable[[], int]


def info(key: str, etag: str = "1") -> ObjectInfo:
    return ObjectInfo(key, etag, len(key) + len(etag), mtime_ns=7, storage_class="STANDARD")


# -- the reference, which knows nothing of pages ------------------------------------------------------------------


def mappable(component: str) -> bool:
    try:
        length = len(component.encode())
    except UnicodeEncodeError:
        return False
    return component not in ("", ".", "..") and "\0" not in component and length <= 255


def naive_tree(objects: list[ObjectInfo], root: str) -> Tree:
    """The tree of these keys, one key at a time, without any notion of order."""
    tree: Tree = {"": {}}
    for found in objects:
        *parents, name = found.key[len(root) :].split("/")
        directory = ""
        for parent in parents:
            if not mappable(parent):
                break
            tree[directory][f"{parent}/"] = Entry(f"{parent}/")
            directory += f"{parent}/"
            tree.setdefault(directory, {})
        else:
            if mappable(name):
                tree[directory][name] = Entry(name, found.size, found.mtime_ns, found.etag, found.storage_class)
    return tree


def naive_skipped(objects: list[ObjectInfo], root: str) -> set[str]:
    """The keys that no path leads to."""
    skipped = set()
    for found in objects:
        *parents, name = found.key[len(root) :].split("/")
        if not all(map(mappable, parents)) or (name != "" and not mappable(name)) or (name == "" and not parents):
            skipped.add(found.key)
    return skipped - {root}


# -- a model of an index: it knows slices only --------------------------------------------------------------------


@dataclass
class Model:
    tree: Tree = field(default_factory=lambda: {"": {}})
    completed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def apply(self, facts: PageFacts) -> None:
        for piece in facts.slices:
            self.apply_slice(piece)
        self.completed += facts.completed
        self.skipped += facts.skipped

    def make(self, directory: str) -> None:
        """A listing that finds something in a directory makes it, as an index does."""
        if directory not in self.tree:
            self.tree[directory] = {}
            above, _, name = directory[:-1].rpartition("/")
            above = f"{above}/" if above else ""
            self.make(above)
            self.tree[above][f"{name}/"] = Entry(f"{name}/")

    def apply_slice(self, piece: Slice) -> None:
        if piece.entries:
            self.make(piece.directory)
        known = self.tree.get(piece.directory)
        if known is None:
            return
        difference = diff({name: (entry.etag, entry.size) for name, entry in known.items()}, piece)
        for name in difference.removed:
            del known[name]
            if name.endswith("/"):
                self.forget(piece.directory + name)
        for entry in difference.added:
            if entry.is_dir:
                self.tree.setdefault(piece.directory + entry.name, {})
        for entry in (*difference.added, *difference.changed):
            known[entry.name] = entry

    def forget(self, directory: str) -> None:
        for path in [path for path in self.tree if path.startswith(directory)]:
            del self.tree[path]


def recursive_pages(
    objects: list[ObjectInfo], root: str, limit: Limits, start: str = "", stop: str | None = None
) -> Iterator[PageFacts]:
    """What the pages of a recursive listing say, in order; the keys in (start, stop]."""
    keys = [found for found in objects if not start or found.key > root + start]
    keys = [found for found in keys if stop is None or found.key <= root + stop]
    after, index = start, 0
    while True:
        page = keys[index : index + limit()]
        index += len(page)
        last = index >= len(keys)
        upto = stop if last else page[-1].key[len(root) :]
        yield slices_of_keys(page, root=root, start=start, after=after, upto=upto)
        if upto is None or last:
            return
        after = upto


def delimited_pages(
    objects: list[ObjectInfo], prefix: str, limit: Limits
) -> Iterator[tuple[list[ObjectInfo], list[str], bool]]:
    """The pages of a listing with delimiter, as S3 gives them: keys and folded prefixes in one order."""
    items: dict[str, ObjectInfo | None] = {}
    for found in objects:
        if found.key.startswith(prefix):
            cut = found.key.find("/", len(prefix))
            items[found.key if cut < 0 else found.key[: cut + 1]] = found if cut < 0 else None
    names = sorted(items)
    index = 0
    while True:
        page = names[index : index + limit()]
        index += len(page)
        found_objects = [found for name in page if (found := items[name]) is not None]
        yield found_objects, [name for name in page if items[name] is None], index >= len(names)
        if index >= len(names):
            return


def walk_directories(model: Model, objects: list[ObjectInfo], root: str, limit: Limits) -> None:
    """List every directory with a delimiter, from the root down."""
    todo = [""]
    while todo:
        directory = todo.pop()
        after = ""
        for found, prefixes, last in delimited_pages(objects, root + directory, limit):
            piece, skipped = slice_of_directory(directory, found, prefixes, root=root, after=after, last=last)
            model.apply_slice(piece)
            model.skipped += skipped
            after = piece.upto or after
            todo += [directory + entry.name for entry in piece.entries if entry.is_dir]


# -- what keys look like ------------------------------------------------------------------------------------------

COMPONENTS = ["a", "b", "", ".", "..", "a-b", "a.b", "a0", "a b", "…", "é", "é", "😀", "\uffff", "a\n", "%2F", "~",
              "...", "x\0y", "n" * 255, "n" * 256, "ü" * 128, "!", "\x01", "\\"]  # fmt: skip
components = st.sampled_from(COMPONENTS[:8]) | st.sampled_from(COMPONENTS)
paths = st.lists(components, min_size=1, max_size=4).map("/".join)
etags = st.sampled_from("12")
roots = st.sampled_from(["", "data/", "a/", "a/b/"])


@st.composite
def buckets(draw: st.DrawFn, root: str) -> list[ObjectInfo]:
    """Objects below `root` in key order."""
    keys = draw(st.dictionaries(paths, etags, max_size=14))
    return [info(key, keys[path]) for path in sorted(keys) if (key := root + path)]


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    state = [0]

    def limit() -> int:
        state[0] += 1
        return sizes[state[0] % len(sizes)]

    return limit


@given(st.data())
def test_recursive_pages_give_the_tree_of_the_keys(data: st.DataObject) -> None:
    root = data.draw(roots)
    objects, limit = data.draw(buckets(root)), data.draw(limits())
    model = Model()
    for facts in recursive_pages(objects, root, limit):
        model.apply(facts)
    assert model.tree == naive_tree(objects, root)
    assert sorted(model.skipped) == sorted(naive_skipped(objects, root))


@given(st.data())
def test_listing_directory_by_directory_gives_the_same_tree(data: st.DataObject) -> None:
    root = data.draw(roots)
    objects, limit = data.draw(buckets(root)), data.draw(limits())
    recursive, delimited = Model(), Model()
    for facts in recursive_pages(objects, root, limit):
        recursive.apply(facts)
    walk_directories(delimited, objects, root, limit)
    assert delimited.tree == recursive.tree == naive_tree(objects, root)
    # A folded prefix stands for all keys below it.
    assert all(any(key.startswith(skipped) for skipped in delimited.skipped) for key in recursive.skipped)
    assert all(any(key.startswith(skipped) for key in recursive.skipped) for skipped in delimited.skipped)


@given(st.data())
def test_what_is_said_to_be_complete_is_complete(data: st.DataObject) -> None:
    root = data.draw(roots)
    objects, limit = data.draw(buckets(root)), data.draw(limits())
    truth, model = naive_tree(objects, root), Model()
    for facts in recursive_pages(objects, root, limit):
        model.apply(facts)
        for directory in facts.completed:
            assert model.tree[directory] == truth[directory]
    assert sorted(model.completed) == sorted(truth)  # each once, and the root last of all
    assert model.completed.index("") >= len(model.completed) - len(facts.completed)


@given(st.data())
def test_a_pass_over_an_older_tree_makes_it_the_new_one(data: st.DataObject) -> None:
    root = data.draw(roots)
    old, new, limit = data.draw(buckets(root)), data.draw(buckets(root)), data.draw(limits())
    recursive, delimited = Model(naive_tree(old, root)), Model(naive_tree(old, root))
    for facts in recursive_pages(new, root, limit):
        recursive.apply(facts)
    walk_directories(delimited, new, root, limit)
    assert recursive.tree == delimited.tree == naive_tree(new, root)


@given(st.data())
def test_segments_of_the_key_space_in_any_order_give_the_tree(data: st.DataObject) -> None:
    """A listing cut at any keys, its pieces listed by workers that know nothing of each other, over an older tree."""
    root = data.draw(roots)
    old, objects, limit = data.draw(buckets(root)), data.draw(buckets(root)), data.draw(limits())
    cuts = sorted(data.draw(st.sets(paths.filter(bool), max_size=3)))
    segments = list(zip(["", *cuts], [*cuts, None], strict=True))
    truth, model = naive_tree(objects, root), Model(naive_tree(old, root))
    across = {directory for cut in cuts for directory in ancestors(cut)}
    for start, stop in data.draw(st.permutations(segments)):
        for facts in recursive_pages(objects, root, limit, start, stop):
            model.apply(facts)
            for directory in set(facts.completed) - across:
                assert model.tree[directory] == truth[directory]
    assert set(truth) <= set(model.completed) | across
    # What lies across a cut is for whoever holds the pieces together to settle: the importer asks if it exists at all.
    for directory in sorted(across - {""}, reverse=True):
        if any(found.key.startswith(root + directory) for found in objects):
            model.make(directory)
        elif directory in model.tree:
            model.forget(directory)
            above, _, name = directory[:-1].rpartition("/")
            del model.tree[f"{above}/" if above else ""][f"{name}/"]
    assert model.tree == truth
    assert sorted(model.skipped) == sorted(naive_skipped(objects, root))


@given(st.data())
def test_slices_of_one_directory_follow_each_other_without_a_gap(data: st.DataObject) -> None:
    root = data.draw(roots)
    objects, limit = data.draw(buckets(root)), data.draw(limits())
    reached: dict[str, str | None] = {}
    for facts in recursive_pages(objects, root, limit):
        assert len({piece.directory for piece in facts.slices}) == len(facts.slices)
        for piece in facts.slices:
            assert piece.after == reached.get(piece.directory, "")
            for entry in piece.entries:
                # A slice ends at a key, which may lie below its last entry.
                assert piece.after < entry.name
                assert piece.upto is None or entry.name <= piece.upto
            reached[piece.directory] = piece.upto
    assert set(reached.values()) == {None}


@given(st.lists(st.text(alphabet="ab/.", max_size=6), max_size=12, unique=True), limits())
@example(["a", "a-b", "a/", "a/b", "a0"], lambda: 1)
@example(["a//b", "a/b", "a/b/", "a/b//"], lambda: 1)
@example(["/", "//", "a/./b", "a/../b"], lambda: 2)
def test_both_listings_agree_on_dense_keys(keys: list[str], limit: Limits) -> None:
    objects = [info(key) for key in sorted(keys) if key]
    recursive, delimited = Model(), Model()
    for facts in recursive_pages(objects, "", limit):
        recursive.apply(facts)
    walk_directories(delimited, objects, "", limit)
    assert recursive.tree == delimited.tree == naive_tree(objects, "")


def test_an_empty_page_that_is_not_the_last_decides_nothing() -> None:
    facts = slices_of_keys([], root="", start="", after="a/b", upto="a/b")
    assert [(piece.directory, piece.after, piece.upto) for piece in facts.slices] == [
        ("", "a/b", "a/b"),
        ("a/", "b", "b"),
    ]
    assert not any(piece.covers(name) for piece in facts.slices for name in ("a/", "b", "c", "a"))
    assert facts.completed == []


def test_the_marker_of_the_mounted_prefix_is_no_entry() -> None:
    facts = slices_of_keys([info("data/"), info("data/x")], root="data/", start="", after="", upto=None)
    assert [(piece.directory, [entry.name for entry in piece.entries]) for piece in facts.slices] == [("", ["x"])]
    assert facts.skipped == []


def test_a_file_hidden_by_a_directory_is_kept_beside_it() -> None:
    facts = slices_of_keys([info("a"), info("a/b")], root="", start="", after="", upto=None)
    assert [entry.name for entry in facts.slices[0].entries] == ["a", "a/"]


@pytest.mark.parametrize(
    ("component", "word"),
    [
        ("", "empty"),
        (".", "'.'"),
        ("..", "'..'"),
        ("a\0", "NUL"),
        ("\udc80", "UTF-8"),
        ("n" * (MAX_COMPONENT_BYTES + 1), "255"),
        ("é" * 128, "255"),
    ],
)
def test_a_component_that_cannot_be_a_name_has_its_reason(component: str, word: str) -> None:
    problem = component_problem(component)
    assert problem is not None
    assert word in problem


@pytest.mark.parametrize("component", ["a", "...", ".a", " ", "\n", "\\", "%", "n" * 255, "😀", "é" * 127])
def test_other_components_can_be_names(component: str) -> None:
    assert component_problem(component) is None


def test_ancestors() -> None:
    assert ancestors("") == [""]
    assert ancestors("a") == [""]
    assert ancestors("a/b/c") == ["", "a/", "a/b/"]
    assert ancestors("a/b/") == ["", "a/", "a/b/"]
    assert ancestors("a//c") == ["", "a/"]
    assert ancestors("/a") == [""]
    assert ancestors("a/../c") == ["", "a/"]


# -- diff ---------------------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "a/", "b", "b/", "c", "d/", "e"])
versions = st.tuples(st.sampled_from(["1", "2"]), st.integers(0, 1))


@given(st.dictionaries(names, versions), st.dictionaries(names, versions), names | st.just(""), st.none() | names)
def test_diff_tells_what_to_do_and_no_more(
    known: dict[str, tuple[str, int]], listed: dict[str, tuple[str, int]], after: str, upto: str | None
) -> None:
    piece = Slice("", after, upto, [])
    piece.entries += [Entry(name, size, 0, etag) for name, (etag, size) in sorted(listed.items()) if piece.covers(name)]
    difference = diff(known, piece)
    result = dict(known)
    for name in difference.removed:
        del result[name]
    for entry in difference.added:
        assert entry.name not in known
        result[entry.name] = (entry.etag, entry.size)
    for entry in difference.changed:
        assert not entry.is_dir
        assert known[entry.name] != (entry.etag, entry.size)
        result[entry.name] = (entry.etag, entry.size)
    for name in {*known, *listed}:
        expected = listed if piece.covers(name) else known
        assert (name in result) == (name in expected)
        if name in expected and not name.endswith("/"):
            assert result[name] == expected[name]


def test_a_slice_does_not_decide_on_the_directory_in_which_it_ends() -> None:
    piece = Slice("", "a", "b/c", [])
    assert [name for name in ("a", "a/", "aa", "b", "b/", "b/c", "c") if piece.covers(name)] == [
        "a/", "aa", "b", "b/c"]  # fmt: skip
    assert Slice("", "a", None, []).covers("b/")


def test_another_time_alone_is_no_change() -> None:
    entry = file_entry("a", info("a"))
    assert diff({"a": (entry.etag, entry.size)}, Slice("", "", None, [entry._replace(mtime_ns=99)])) == Difference()
    assert diff({"d/": ("x", 9)}, Slice("", "", None, [Entry("d/")])) == Difference()
