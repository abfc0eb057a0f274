"""Words as a POSIX shell splits them: held against the shell itself."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlane_grpc.text.shell_words import split_command


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \t\n ", []),
        ("true", ["true"]),
        ("sh -c 'echo \"hi there\"; exit 3'", ["sh", "-c", 'echo "hi there"; exit 3']),
        ("a''b \"\" ''", ["ab", "", ""]),
        ("a\\ b c\\\nd", ["a b", "cd"]),
        ("\\\n", []),
        ("\\'", ["'"]),
        ('"\\a \\$x \\` \\" \\\\ \\\n."', ['\\a $x ` " \\ .']),
        ("'\\' '\n'", ["\\", "\n"]),
        ("# $HOME * ~ | ; & > {a,b}", ["#", "$HOME", "*", "~", "|", ";", "&", ">", "{a,b}"]),
        ("a\rb\u00a0c ü", ["a\rb\u00a0c", "ü"]),
    ],
)
def test_text_is_split_as_a_posix_shell_splits_it(text: str, words: list[str]) -> None:
    assert split_command(text) == words


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("echo 'it", "the single quote at character 6 is not closed"),
        ('echo "a\\"', "the double quote at character 6 is not closed"),
        ("echo \\", "ends with a backslash that has nothing after it"),
    ],
)
def test_what_cannot_be_split_says_where_and_why(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        split_command(text)


# What means the same to us and to the shell: to that, a bare newline ends the command, and `$` and `` ` `` are special.
PIECES = st.one_of(
    st.text("ab=-/.,:ü", min_size=1, max_size=3),
    st.sampled_from(
        [
            " ",
            "\t",
            "  ",
            "\\\n",
            "\\ ",
            "\\'",
            '\\"',
            "\\\\",
            "\\$",
            "\\`",
            "\\a",
            "\\#",
            "\\*",
            "\\~",
            "''",
            '""',
            "a#",
        ]
    ),
    st.text('ab \t\n\\"$`#*;|&<>()', max_size=6).map(lambda text: f"'{text}'"),
    st.lists(
        st.sampled_from(["a", " ", "\n", "'", "#", "*", ";", "\\$", "\\`", '\\"', "\\\\", "\\\n", "\\a", "\\ ", "\\'"]),
        max_size=6,
    ).map(lambda parts: '"' + "".join(parts) + '"'),
)


@given(st.lists(st.lists(PIECES, max_size=12).map("".join), min_size=20, max_size=20))
@settings(max_examples=40)
def test_words_are_those_of_a_real_shell(texts: list[str]) -> None:
    # An `x` before the text keeps a first word that looks like an option from printf; the one after shows that nothing
    # ran on.
    script = "".join(f"printf '%s\\0' x {text} x\nprintf 'END\\0'\n" for text in texts)
    shell = subprocess.run(["sh", "-fc", script], capture_output=True, check=True, timeout=20)
    answers = shell.stdout.decode().split("END\0")[:-1]
    assert answers == ["".join(f"{word}\0" for word in ["x", *split_command(text), "x"]) for text in texts]
