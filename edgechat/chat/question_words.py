"""Words of a question by which an earlier question is recognised as the same one.

Similarity alone cannot decide that: "convert miles to km" and "convert km to miles" are more similar, by trigrams and
by embeddings, than most pairs of questions with the same meaning. So two questions are the same only if all their words
are, in the same order, apart from a closed list of words and phrases that do not change the meaning
(docs/decisions.md has the numbers).
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

MAX_CHARS: Final = 2000
"""Maximum length of a question in characters. Longer texts are rarely asked twice, and are not compared."""
_MIN_TERM_CHARS: Final = 3  # the search index finds trigrams
_MAX_TERMS: Final = 8
_MIN_TOKENS: Final = 2
_MIN_STEM_CHARS: Final = 4

# Words, numbers with their inner marks, and single symbols. Marks of punctuation are no tokens, unless they have a
# meaning in formulas: "5!", "f'", `6"`.
_TOKEN: Final = re.compile(
    r"(?<![\w.])\.\d+|\d+(?:[.,:]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?|!=|!(?=\w)|(?<=[\d)])!|(?<=\b[^\W\d_])!"
    r"|(?<=\b[^\W\d_])'+(?![^\W\d_])|(?<=\d)['\"]+|[^\w\s.,;:?!'\"`\u2026\u00bf\u00a1\u2013\u2014]|\w+"
)
# Typographic quotation marks; the single ones are apostrophes, too.
_QUOTES: Final = {ord(mark): "'" for mark in "\u2018\u2019\u201a\u2039\u203a"} | {
    ord(mark): '"' for mark in "\u201c\u201d\u201e\u00ab\u00bb\u300c\u300d"
}
_MINUS: Final = re.compile(r"[\u2013\u2014\u2212](?=\s?\d)")
_INDENTATION: Final = re.compile(r"\n([ \t]+)(?=\S)")
# The letter in "vitamin A", as opposed to the article, and capitals as in "IT" and "US", as opposed to pronouns. Marks
# with an underscore, which are not in the search index, keep them apart.
_NAME_A: Final = re.compile(r"(?<=[^\W_] )A\b|\ba(?=\W*$)")
_CAPITALS: Final = re.compile(r"\b[A-Z]{2,}\b")
_OTHER_PRONOUNS: Final = frozenset(("us", "it", "he", "aids"))
_HYPHEN_IN_WORD: Final = re.compile(r"(?<=[^\W\d_])[-\u2010\u2011](?=[^\W\d_])")
_LETTERS: Final = re.compile(r"[^\W\d_]+")


def _split(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Function words that identify a language. A word may be in several languages; the language with the most words counts.
_FUNCTION_WORDS: Final[Mapping[str, frozenset[str]]] = {
    "en": _split(
        "a an the of is are was were do does did how what which who whom where when why can could should would will to "
        "in on for with and or my your i you me please explain write about from not it there has have"
    ),
    "de": _split(
        "der die das den dem des ein eine einen einem einer ist sind war wie was wer wo wann warum kann können soll "
        "man ich du mir bitte und oder nicht kein keine von vom zu zum mit für auf im welche welcher welches"
    ),
    "fr": _split(
        "le la les l un une des du de est sont était comment que quoi qui où quand pourquoi quel quelle quels quelles "
        "je tu moi et ou ne pas avec sans pour dans sur en au aux faire"
    ),
    "es": _split(
        "el la los las un una unos unas de del es son era cómo como qué que quién dónde cuándo cuál cual por para y o "
        "no con sin en me mi tu yo hacer puedo puede se"
    ),
}
# Words that do not change the meaning of a question. Negations, directions ("from", "to"), tenses ("was", "did"), and
# words for persons and possession ("my", "your") are not among them.
_NEUTRAL_WORDS: Final[Mapping[str, frozenset[str]]] = {
    "en": _split("a an the of is are there please"),
    "de": _split("der die das den dem des ein eine einen einem einer ist sind bitte"),
    "fr": _split("le la les un une des du de est sont"),
    "es": _split("el la los las un una unos unas de del es son"),
}  # fmt: skip
_GREETING: Final = r"(?:hi|hello|hey|please|ok|okay|good morning|good evening)"
_REQUEST: Final = (
    r"(?:(?:can|could|would|will) you (?:please )?|i (?:want|need) you to |i would like you to |please |kindly )"
)
_INTRODUCTION: Final = (
    r"(?:tell me|do you know|i (?:want|need|would like) to know|i (?:wonder|am wondering|was wondering))"
)
# Replacements in the words of a question, joined by spaces, in this order.
_PHRASES: Final[Mapping[str, Sequence[tuple[re.Pattern[str], str]]]] = {
    language: [(re.compile(pattern), text) for pattern, text in phrases]
    for language, phrases in {
        "en": (
            (r"\b(it|that|there|what|who|where|how|he|she|when|why)'s\b", r"\1 is"),
            (r"\bcan't\b", "can not"), (r"\bwon't\b", "will not"), (r"n't\b", " not"), (r"\bi'd\b", "i would"),
            (r"'re\b", " are"), (r"'ll\b", " will"), (r"\bi'm\b", "i am"), (r"'ve\b", " have"),
            (r"\b([^\W\d_]+)'s ([^\W\d_]+)\b", r"\2 of \1"), (r"\bcannot\b", "can not"),
            (rf"^(?:{_GREETING} )+", ""), (r"(?: please| thanks| thank you| many thanks)+$", ""),
            (rf"^{_REQUEST}", ""),
            (rf"^{_INTRODUCTION} (?=what|who|where|when|why|how|which|if|whether|the|about)", ""),
            (r"^(?:tell me )?(what|who|where) (.+) (?:is|are)$", r"\1 is \2"),
            (r"^(explain why|why) ((?:the |a |an )?[^\W\d_]+) (is|are) ", r"\1 \3 \2 "),
            (r"^explain (?=why )", ""),
            (r"^((?:write|explain|show|give|draw|compose|describe)) (?:to )?(?:me|us) ", r"\1 "),
            (r"^(explain .+) to me$", r"\1"), (r"^explain the concept of ", "explain "),
            (r"^explain (?=(?:the )?difference )", ""), (r"^what is the best way to ", "how "),
            (r"\bhow (?:do|does|can|could) (?:i|we|one|someone|somebody|people)\b", "how"),
            (r"\bhow to\b", "how"),
            (r"^which city is the (?=capital of )", ""), (r"\ba (few|little)\b", r"a_\1"),
            (r"^what (?:is|are) ", ""), (r"^how much is (?=\d)", ""), (r"\bwhich\b", "what"),
            (r"\b(how|why|when|where|what|who|whom)( [^\W\d_]+)? (?:do|does)\b", r"\1\2"),
            (r"^(?=(?:is|are|am|do|does|can|could|should|would|will|was|were|did|has|have|must|may) )", "yes/no "),
            (r"^yes/no (?:do|does) ", "yes/no "),
        ),
        "de": (
            (r"\bein wenig\b", "ein_wenig"),
            (r"^(?:hallo|hi|bitte|guten tag) ", ""), (r"(?: bitte| danke)+$", ""),
            (r"\bwie (?:kann|können|könnte) (?:ich|man|wir)\b", "wie"),
            (r"^was (?:ist|sind) ", ""), (r"^(?=(?:ist|sind|war|kann|soll|hat|darf) )", "ja/nein "),
        ),
        "fr": (
            (r"\bun peu\b", "un_peu"),
            (r"^(?:bonjour|salut) ", ""), (r"(?: merci| s'il (?:te|vous) plaît)+$", ""), (r"\b[ld]'", ""),
            (r"^(?:quel|quelle|quels|quelles) (?:est|sont) ", ""), (r"^(?=(?:est|sont) )", "oui/non "),
        ),
        "es": (
            (r"\bun poco\b", "un_poco"),
            (r"^hola ", ""), (r"(?: gracias| por favor)+$", ""),
            (r"^(?:cuál|cual|qué|cuáles|cuales) (?:es|son) ", ""), (r"^(?=(?:es|son) )", "sí/no "),
        ),
    }.items()
}  # fmt: skip


class Question(msgspec.Struct, frozen=True):
    """Words of a question that decide whether another question is the same."""

    words: tuple[str, ...] = ()
    """Words, numbers and symbols in their order, without neutral words; empty if the text cannot be compared."""
    language: str = ""
    """Code of the language; "" if it is not known."""

    @property
    def search_terms(self) -> list[str]:
        """Beginnings of words that every earlier version of the question contains, longest first.

        Empty if no word is long enough for the search index; such a question is not looked up.
        """
        # Function words can stand for others: "what" for "which", and "not" for the end of "can't".
        function_words = _FUNCTION_WORDS.get(self.language, frozenset())
        terms = {word for word in self.words if word not in function_words and not {*"/'_\u2424"} & {*word}}
        if self.language == "en":
            terms = {_find_common_beginning(word) for word in terms}
        return sorted((t for t in terms if len(t) >= _MIN_TERM_CHARS), key=lambda t: (-len(t), t))[:_MAX_TERMS]

    def is_same(self, other: Question) -> bool:
        """Return whether the reply to one question is also the reply to the other."""
        is_other_language = bool(self.language and other.language) and self.language != other.language
        return bool(self.words) and self.words == other.words and not is_other_language


@functools.lru_cache(maxsize=256)
def parse_question(text: str) -> Question:
    """Return the words of a question; none for a text longer than `MAX_CHARS`, and for an empty text or one word."""
    if len(text) > MAX_CHARS:
        return Question()
    if not text.isupper():
        text = _CAPITALS.sub(_mark_capitals, _NAME_A.sub("_a_", text))
    # Not NFKC, which would make "5\u00b2" the number 52.
    folded = unicodedata.normalize("NFC", text).translate(_QUOTES).casefold()
    folded = _INDENTATION.sub(lambda match: f" \u2424{len(match[1])} ", _MINUS.sub("-", folded))
    tokens: list[str] = _TOKEN.findall(_HYPHEN_IN_WORD.sub(" ", folded))
    if len(tokens) < _MIN_TOKENS and folded.isascii():  # "hello", "test", "continue"
        return Question()
    language = _detect_language(tokens)
    if not language:
        return Question(tuple(tokens))
    line = " ".join(tokens)
    for pattern, replacement in _PHRASES[language]:
        line = pattern.sub(replacement, line)
    neutral = _NEUTRAL_WORDS[language]
    words = [word for word in line.split() if word not in neutral]
    if language == "en":
        words = [_normalise_word(word) for word in words]
    return Question(tuple(words), language)


def _mark_capitals(match: re.Match[str]) -> str:
    word = match[0].casefold()
    return f"{word}_" if word in _FUNCTION_WORDS["en"] or word in _OTHER_PRONOUNS else match[0]


def _detect_language(tokens: Sequence[str]) -> str:
    """Return the language with the most function words; "" if there is none or several have the same number."""
    parts = [part for token in tokens for part in token.split("'")]
    counts = sorted(((sum(p in words for p in parts), code) for code, words in _FUNCTION_WORDS.items()), reverse=True)
    return counts[0][1] if counts[0][0] > counts[1][0] else ""


def _normalise_word(word: str) -> str:
    """Return the singular of a regular English plural, with the American spelling; other words unchanged."""
    if len(word) < _MIN_STEM_CHARS or word in _FUNCTION_WORDS["en"] or not _LETTERS.fullmatch(word):
        return word
    if word.endswith(("ie", "ies")) and len(word) > _MIN_STEM_CHARS:
        word = word.rstrip("s")[:-2] + "y"
    elif word.endswith(("sses", "xes", "ches", "shes", "zes", "atoes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    if word.endswith("our") and len(word) > _MIN_STEM_CHARS:
        word = word[:-3] + "or"
    return re.sub(r"(?<=[^\W\d_]{4})is(?=(?:e|ed|ing|ation)$)", "iz", word)


def _find_common_beginning(word: str) -> str:
    """Return the beginning that all spellings have that `_normalise_word` maps to `word`."""
    if word.endswith("y"):
        return word[:-1]
    if word.endswith("or"):
        return word[:-1]
    return re.sub(r"iz(?:e|ed|ing|ation)$", "i", word)
