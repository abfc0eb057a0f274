"""Text of callers, engines, registries and images as one printable line, for logs, outcomes and terminals."""

import unicodedata

# Formatting characters that reorder or hide their neighbours. Other formatting characters only join letters.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Cc: C0 and C1 controls, newlines among them. Zl, Zp: line and paragraph separators. Cs: halves of characters.
_CONTROLS = frozenset({"Cc", "Zl", "Zp", "Cs"})


def printable(text: str) -> str:
    """Return the text with a space in place of each unprintable character: controls, line breaks, escapes, bidi
    overrides."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text)


def one_line(text: str, max_characters: int) -> str:
    """Return the text as one printable line of at most `max_characters`; a longer text ends with `…`."""
    line = printable(text)
    return line if len(line) <= max_characters else f"{line[: max_characters - 1]}…"


def control_character(text: str) -> str:
    """Return the name of the first character that a line of text must not hold, as `U+001B`; empty if there is none."""
    if text.isprintable():
        return ""
    found = (each for each in text if each in _BIDI or unicodedata.category(each) in _CONTROLS)
    return next((f"U+{ord(each):04X}" for each in found), "")
