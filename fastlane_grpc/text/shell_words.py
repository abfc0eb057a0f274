"""Splitting of a command into words, by the quotes and backslashes of a POSIX shell and nothing else."""

import re

# One piece of the text. An unclosed quote, or a backslash at the very end, matches no alternative.
_PIECE = re.compile(
    r"""
      (?P<blank>    [ \t\n]+ )
    | (?P<joined>   \\\n )
    | \\ (?P<escaped> . )
    | ' (?P<single> [^']* ) '
    | " (?P<double> (?: [^"\\] | \\. )* ) "
    | (?P<plain>    [^ \t\n\\'"]+ )
    """,
    re.VERBOSE | re.DOTALL,
)
# A text without these is split at its blanks.
_QUOTE = re.compile(r"""[\\'"]""")
# Between double quotes a backslash is special only before these. A backslash and a newline are both removed.
_DOUBLE_ESCAPE = re.compile(r'\\([$`"\\\n])')


def split_command(text: str) -> list[str]:
    """Return the words of the text. Raises ValueError, with a message for people, for an unclosed quote or a final
    backslash.

    No shell runs: `$`, `*`, `|`, `;`, `#` and `~` are ordinary characters."""
    if not _QUOTE.search(text):
        return [word for word in text.replace("\t", " ").replace("\n", " ").split(" ") if word]
    words: list[str] = []
    word: str | None = None  # None between words: '' is a word.
    position = 0
    while position < len(text):
        piece = _PIECE.match(text, position)
        if piece is None:
            raise ValueError(_fault(text, position))
        position = piece.end()
        if piece.lastgroup == "blank":
            if word is not None:
                words.append(word)
            word = None
        elif piece.lastgroup != "joined":
            word = (word or "") + _value(piece)
    return words if word is None else [*words, word]


def _value(piece: re.Match[str]) -> str:
    if piece.lastgroup == "double":
        return _DOUBLE_ESCAPE.sub(lambda escape: escape[1].strip("\n"), piece["double"])
    return piece[piece.lastgroup or 0]


def _fault(text: str, position: int) -> str:
    if text[position] == "\\":
        return "ends with a backslash that has nothing after it; write \\\\ for a backslash"
    name = "single" if text[position] == "'" else "double"
    return f"the {name} quote at character {position + 1} is not closed"
