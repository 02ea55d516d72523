"""Owns: that docs/consumers.md shows the code that is run, and no other.

Promises: a block of code below a line `<!-- FILE -->` is that file of tests/consumers, to the letter; each consumer and
each recipe is shown. With --refresh, the blocks are written anew.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = ROOT / "docs/consumers.md"
BLOCK = re.compile(r"^<!-- (tests/consumers/\S+) -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = ("python/*.py", "javascript/*.mjs", "go/*/*.go", "recipes/*.py")
NOT_SHOWN = ("interop", "kafka_codecs")


def files():
    found = [path for pattern in SHOWN for path in sorted((ROOT / "tests/consumers").glob(pattern))]
    return [path for path in found if not any(name in path.relative_to(ROOT).as_posix() for name in NOT_SHOWN)]


def check(checks):
    faults, shown = [], set()
    for name, _, text in BLOCK.findall(DOCUMENT.read_text(encoding="utf-8")):
        shown.add(name)
        path = ROOT / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            faults.append(f"{name}: expected what the file says; tests/consumers/check --refresh writes it")
    wanted = {path.relative_to(ROOT).as_posix() for path in files()}
    faults += [f"{name}: expected it to be shown, but it is not" for name in sorted(wanted - shown)]
    checks.report("docs/consumers.md shows the code that is run", faults, len(shown))


def refresh():
    def write(block):
        name, language = block[1], block[2]
        return f"<!-- {name} -->\n```{language}\n{(ROOT / name).read_text(encoding='utf-8')}```"

    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(BLOCK.sub(write, text), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--refresh"]:
        sys.exit("expected --refresh")
    refresh()
