"""Words and sentences without a download, in the form datatrove takes in place of a language code."""

from __future__ import annotations

import re

from datatrove.utils.text import TERMINAL_PUNCTUATION
from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer

_APOSTROPHE = "['\u2019]"
_WORD = re.compile(
    rf"""
    \d+(?:[.,:]\d+)*                              # 1,000.50 and 12:30
    | \w+?(?=n{_APOSTROPHE}t\b) | n{_APOSTROPHE}t\b      # do n't
    | {_APOSTROPHE}(?:s|m|d|ll|re|ve)\b           # it 's
    | \w+(?:-\w+)* | \.{{2,}} | [^\w\s]           # well-known, ..., any other mark
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SENTENCE = re.compile(
    # Up to sentence-final marks with closing quotes or brackets, before white space; or to the end of the line.
    rf"\S.*?(?:[{re.escape(''.join(sorted(TERMINAL_PUNCTUATION)))}]+[\"'\u201d\u2019)\]]*(?=\s|$)|$)",
    re.MULTILINE,
)


class SplitWords(WordTokenizer):  # type: ignore[misc]
    """Words are what white space separates: for texts from which punctuation was removed before (MinHash, n-grams)."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[start:end] for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Sentences end at . ! ? and the like before white space, and at line ends; "Mr. Smith" is cut in two."""
        return [match.span() for match in _SENTENCE.finditer(text)]


class PunctuatedWords(SplitWords):
    """Punctuation marks are words of their own and contractions are two, as in the Penn Treebank, which the thresholds
    of the published filters expect. Not NLTK's Treebank tokenizer: its import takes 9 s when nothing is cached."""

    def word_tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text)


def filter_words(language: str | None) -> WordTokenizer | str:
    """What quality filters get as `language`: datatrove's own for a code, else the offline one."""
    return language or PunctuatedWords()


def ngram_words(language: str | None) -> WordTokenizer | str:
    """What MinHash and decontamination get as `language`."""
    return language or SplitWords()


def language_fault(language: str) -> str | None:
    """Why datatrove cannot cut words in a language: it knows no such code, or the package for it is missing."""
    try:
        load_word_tokenizer(language).word_tokenize("one two")
    except (ValueError, ImportError, LookupError) as error:
        return f"{language!r}: {error}"
    return None
