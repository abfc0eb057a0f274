"""Pages of documentation: their headings, their links, and the blocks that say they can be run."""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.tools import ROOT

# All that one page runs, on a machine that has other things to do as well.
SECONDS = 240

# What a shell says of a job of its own that was killed; a person's says it in other words.
OF_JOBS = "^[^ ]*script: line [0-9]*: *[0-9]* Killed "


@dataclass(frozen=True)
class Block:
    """A fenced block. The first word after the fence is its language, the others are about this block.

    `sh run` and `python run` are run; `text printed` is what the block before it prints on stdout, `…` standing for
    what may differ. `console run` is a session: lines that begin with `$ ` are run, what is between them is what they
    print on either stream."""

    language: str
    words: Sequence[str]
    text: str
    line: int

    @property
    def runs(self) -> bool:
        return "run" in self.words

    def script(self, out: Path) -> str:
        """For bash; `out` is where its output goes."""
        match self.language:
            case "sh":
                return f"set -e\n{self.text}"
            case "python":
                return f"set -e\npython - <<'PYTHON'\n{self.text}PYTHON\n"
            case "console":
                return f"exec 2>&1; set +e\n{''.join(self._session(out))}"
        raise ValueError(f"a block in {self.language!r} cannot be run")

    def _session(self, out: Path) -> Iterator[str]:
        """The commands. It goes on after one that failed, as a person does, and waits for what one in the background is
        to say."""
        in_background, lines = False, 0
        for line in self.text.splitlines(keepends=True):
            if line.startswith("$ "):
                yield line[2:]
                in_background = line.endswith(" &\n")
            else:
                lines += 1
                if in_background:
                    yield f"until [ $(grep -vc '{OF_JOBS}' {out}) -ge {lines} ]; do sleep 0.02; done\n"

    def printed(self) -> str:
        """What a session prints."""
        return "".join(line for line in self.text.splitlines(keepends=True) if not line.startswith("$ "))


class DocPage:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def _tokens(self) -> Sequence[Token]:
        return MarkdownIt("commonmark").enable("table").parse(self.path.read_text())

    @cached_property
    def anchors(self) -> frozenset[str]:
        """Of its headings, as the sites that show Markdown make them."""
        seen: Counter[str] = Counter()
        anchors = set()
        for heading in self.headings():
            anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
            seen[anchor] += 1
        return frozenset(anchors)

    def headings(self) -> Iterator[str]:
        for opening, inline in zip(self._tokens, self._tokens[1:], strict=False):
            if opening.type == "heading_open":
                yield "".join(each.content for each in inline.children or ())

    def links(self) -> Iterator[str]:
        for token in self._tokens:
            for each in token.children or ():
                if each.type == "link_open":
                    yield str(each.attrs["href"])

    def blocks(self) -> Iterator[Block]:
        for token in self._tokens:
            if token.type == "fence":
                language, *words = token.info.split() or [""]
                yield Block(language, words, token.content, token.map[0] + 1 if token.map else 0)

    def expectations(self) -> Iterator[tuple[Block, str | None]]:
        """What can be run, in order, each with what it prints if the page says so."""
        blocks = [*self.blocks()]
        for block, after in zip(blocks, [*blocks[1:], None], strict=True):
            if block.runs:
                told = (
                    block.printed()
                    if block.language == "console"
                    else after.text
                    if after and "printed" in after.words
                    else None
                )
                yield block, told

    def run(self, directory: Path, replace: Mapping[str, str], environment: Mapping[str, str]) -> None:
        """Runs all that can be run, one after another in one shell; `replace` is what is called otherwise here. Raises
        AssertionError."""
        expectations = [*self.expectations()]
        parts = ["set -uo pipefail; trap 'set +e; kill $(jobs -p) 2>/dev/null; wait' EXIT\n"]
        for number, (block, _) in enumerate(expectations):
            out = directory / f"{number}.out"
            parts.append(f"exec >{out} 2>{out.with_suffix('.err')}\n{block.script(out)}")
        script = directory / "script"
        script.write_text(replaced("\n".join(parts), replace))
        ran = subprocess.run(
            ["bash", script], cwd=directory, env=dict(environment), stdin=subprocess.DEVNULL, timeout=SECONDS
        )
        for number, (block, told) in enumerate(expectations):
            out, err = directory / f"{number}.out", directory / f"{number}.err"
            last = ran.returncode and not (directory / f"{number + 1}.out").exists()
            assert not last, f"{self}:{block.line} failed with {ran.returncode}:\n{out.read_text()}{err.read_text()}"
            if told is not None:
                pattern = re.escape(replaced(told, replace)).replace("…", "[^\n]*")
                printed = "".join(
                    line for line in out.read_text().splitlines(keepends=True) if not re.search(OF_JOBS, line)
                )
                assert re.fullmatch(pattern, printed), f"{self}:{block.line} printed\n{printed}in place of\n{told}"


def replaced(text: str, replace: Mapping[str, str]) -> str:
    """With each name as it is here, where it stands as a word of its own."""
    pattern = "|".join(rf"(?<![\w./-]){re.escape(name)}(?![\w-])" for name in replace)
    return re.sub(pattern, lambda match: replace[match[0]], text) if replace else text


def pages() -> Sequence[DocPage]:
    """Every page of the repository."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return [DocPage(ROOT / name) for name in names.stdout.split("\0") if name and (ROOT / name).is_file()]
