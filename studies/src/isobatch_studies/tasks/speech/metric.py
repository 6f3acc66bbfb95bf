"""Letters, greedy CTC decoding, and the word error rate."""

from collections.abc import Sequence

import torch

BLANK = 0
LETTERS = " 'abcdefghijklmnopqrstuvwxyz"
CLASSES = len(LETTERS) + 1
_NUMBER = {letter: index for index, letter in enumerate(LETTERS, start=1)}


def encode(text: str) -> list[int]:
    """Return the classes of a text: letters, apostrophe and space; other characters are dropped.

    Args:
        text: any case.

    Returns:
        Classes from 1; 0 is the blank.

    Example:
        >>> encode("A b!")
        [3, 1, 4]
    """
    return [_NUMBER[letter] for letter in text.lower() if letter in _NUMBER]


def decode(classes: Sequence[int]) -> str:
    """Return the text of classes without blanks.

    Args:
        classes: from `encode` or `greedy`.

    Returns:
        The text.

    Example:
        >>> decode(encode("on off"))
        'on off'
    """
    return "".join(LETTERS[index - 1] for index in classes)


def greedy(scores: torch.Tensor, lengths: torch.Tensor) -> list[list[int]]:
    """Decode by the best path: the best class of each frame, repeats merged, blanks dropped.

    Args:
        scores: logits or log-probabilities, shape (batch, frames, classes); class 0 is the blank.
        lengths: valid frames, shape (batch,).

    Returns:
        Classes of each utterance.

    Example:
        >>> scores = torch.eye(3)[torch.tensor([[1, 1, 0, 1, 2, 2]])]
        >>> greedy(scores, torch.tensor([5]))
        [[1, 1, 2]]
    """
    best = scores.argmax(-1).cpu()
    found = []
    for row, length in zip(best, lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(row[:length])
        found.append(merged[merged != BLANK].tolist())
    return found


def edits(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the least number of insertions, deletions and substitutions between two sequences.

    Args:
        one: words.
        other: words.

    Returns:
        Levenshtein's distance.

    Example:
        >>> edits("one two three".split(), "one three four".split())
        2
    """
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        corner, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return the word error rate over utterances, 100 * sum of edits / sum of reference words.

    Args:
        references: what was said, at least one word in all.
        hypotheses: what was recognised.

    Returns:
        Percent; above 100 where many words are inserted.

    Example:
        >>> word_error_rate(["one two", "three"], ["one", "tree"]).__round__(1)
        66.7
    """
    wrong = sum(edits(a.split(), b.split()) for a, b in zip(references, hypotheses, strict=True))
    return 100.0 * wrong / sum(len(text.split()) for text in references)
