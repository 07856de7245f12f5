"""What is kept in RAM: whole blocks, leaves in their middle, the least recently used evicted first."""

from __future__ import annotations

import torch

from dali.engine.prefix.tree import Leaf, Node, Tree
from dali.step.kept import Kept, KeptTokens

BLOCK = 4


def kept(nbytes: int) -> Kept:
    return Kept((KeptTokens(0, None, torch.zeros(nbytes, dtype=torch.uint8), torch.zeros(0)),))


def grow(tree: Tree, tokens: str, nbytes: int = 10) -> Node:
    """Whole blocks of letters, and a leaf for the rest; the last node."""
    letters = tuple(map(ord, tokens))
    node = tree.walk(0, letters, BLOCK)
    while node.end + BLOCK <= len(letters) and not node.gone:
        child = Node(node, letters[node.end : node.end + BLOCK], kept(nbytes))
        tree.add(child)
        node = child
    if node.end < len(letters) and not node.gone:
        tree.add(Leaf(node, letters[node.end :], kept(nbytes)))
    return node


def depth(tree: Tree, tokens: str) -> int:
    return tree.walk(0, tuple(map(ord, tokens)), BLOCK).end


def test_sequences_that_begin_alike_share_their_beginning():
    tree = Tree(1000)
    grow(tree, "aaaabbbbcccc")
    grow(tree, "aaaabbbbdddd")
    assert (len(tree), tree.nbytes) == (4, 40)
    assert [depth(tree, text) for text in ("aaaabbbbdddde", "aaaabbbx", "aaab")] == [12, 4, 0]


def test_regimes_share_nothing():
    tree = Tree(1000)
    grow(tree, "aaaa")
    assert tree.walk(1, (97,) * 4, BLOCK).end == 0


def test_the_end_that_was_not_used_for_longest_goes_first():
    tree = Tree(50)
    grow(tree, "aaaabbbbcc")
    grow(tree, "ddddeeee")
    assert tree.nbytes == 50
    tree.use(grow(tree, "aaaabbbb"))  # the leaf behind it was not used
    assert grow(tree, "ffff").gone is False
    assert [depth(tree, text) for text in ("aaaabbbb", "ddddeeee", "ffff")] == [8, 8, 4]
    grow(tree, "gggg")
    assert [depth(tree, text) for text in ("aaaabbbb", "ddddeeee", "ffff", "gggg")] == [8, 4, 4, 4]
    assert tree.nbytes == 50


def test_a_sequence_larger_than_all_room_keeps_its_beginning():
    tree = Tree(30)
    grow(tree, "zzzz")
    last = grow(tree, "aaaabbbbccccddddeeee")
    assert last.gone
    assert depth(tree, "aaaabbbbccccdddd") == 12
    assert tree.nbytes == 30


def test_what_is_too_large_by_itself_evicts_nobody():
    tree = Tree(30)
    grow(tree, "aaaabbbb")
    assert grow(tree, "cccc", nbytes=31).gone
    assert (depth(tree, "aaaabbbb"), tree.nbytes) == (8, 20)


def test_what_follows_goes_with_what_it_follows():
    tree = Tree(1000)
    last = grow(tree, "aaaabbbbccccdd")
    other = grow(tree, "aaaaeeee")
    middle = last.parent
    assert middle is not None
    dropped = tree.drop(middle)
    assert len(dropped) == 3  # two blocks and the leaf
    assert all(entry.gone for entry in dropped)
    assert not other.gone
    assert (len(tree), tree.nbytes) == (2, 20)


def test_nothing_is_left_after_clearing():
    tree = Tree(1000)
    node = grow(tree, "aaaabb")
    root = tree.root(0)
    tree.clear()
    assert node.gone
    assert root.gone  # whoever goes on from it would not be found
    assert (len(tree), tree.nbytes, depth(tree, "aaaabb")) == (0, 0, 0)
