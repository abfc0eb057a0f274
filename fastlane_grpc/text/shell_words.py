"""How one string becomes the words of a command: as a POSIX shell splits it, with quotes and backslashes and nothing
else."""

import re

# One piece of the text. An unclosed quote, or a backslash at the very end, matches none of them.
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
# Between double quotes a backslash is special before these alone; before a newline both go.
_DOUBLE_ESCAPE = re.compile(r'\\([$`"\\\n])')


def split_command(text: str) -> list[str]:
    """The words of `text`. Raises ValueError, for a person to read, where a quote is not closed or a backslash has
    nothing after it.

    No shell runs: `$`, `*`, `|`, `;`, `#` and `~` are characters like any other.
    """
    words: list[str] = []
    word: str | None = None  # None between words, so that '' is a word and nothing is none.
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
