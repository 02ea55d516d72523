"""Owns: what is linked into the program: an SBOM (CycloneDX 1.6) of each artefact, and the text of every licence.

Promises: names every crate that cargo links in, the libraries in C that crates bring along, and what the compilers link
statically. Refuses a crate that brings a library that is not named here, one without a licence's text, and a licence that
deny.toml does not allow. Equal inputs give equal bytes.

Usage: third_party.py licences --target TRIPLE --out FILE
       third_party.py sbom --target TRIPLE --contents program|image|chart --out FILE [--of ARTEFACT]
From the top of the source, with SOURCE_DATE_EPOCH set, and for the first the crates in cargo's cache.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import tomllib
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

TEXT_NAME = re.compile(r"(?i)(licen[cs]e|copying|notice|copyright|unlicense)")
# For crates of MIT alone that are published without its text.
MIT = """The MIT License

{holder}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy,
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE,
ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
PUBLIC_DOMAIN = "The author disclaims copyright to SQLite's source code; it is in the public domain.\n"
# Copyleft, of what the compilers link in. Both allow a work under any licence to contain them: the first if whoever gets
# the work can link it with another version of the library (source and build script of the program are public), the second
# without a condition, for what a GCC has compiled.
SYSTEM_LICENCES = {"LGPL-2.1-or-later", "GPL-3.0-or-later WITH GCC-exception-3.1"}
# Where Debian and Ubuntu keep the texts of what the compilers link in.
DEBIAN_TEXTS = {
    "glibc": ["/usr/share/doc/libc6/copyright", "/usr/share/common-licenses/LGPL-2.1"],
    "gcc": ["/usr/share/doc/libgcc-s1/copyright", "/usr/share/common-licenses/GPL-3"],
    "ca-certificates": ["/usr/share/doc/ca-certificates/copyright", "/usr/share/common-licenses/MPL-2.0"],
}


class Refused(Exception):
    """What a release may not contain, or must say and does not."""


@dataclass
class Part:
    """One thing that is linked in or shipped."""

    name: str
    version: str
    licence: str
    purl: PackageURL
    sha256: str | None = None
    # Texts by their names.
    texts: dict[str, str] = field(default_factory=dict)


def read(path):
    return Path(path).read_text(encoding="utf-8", errors="replace")


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def texts_of(folder):
    return {path.name: read(path) for path in sorted(folder.iterdir()) if path.is_file() and TEXT_NAME.match(path.name)}


def defined(header, name):
    found = re.search(rf'#define\s+{name}\s+"([^"]+)"', read(header))
    if not found:
        raise Refused(f"expected {name} in {header}, but found none")
    return found[1]


def library(crate, folder):
    """The library in C that a crate with the key `links` brings along, or nothing if it is known to bring none."""
    upstream = crate["version"].partition("+")[2]

    def part(name, version, licence, paths):
        purl = PackageURL("generic", name=name, version=version)
        return Part(name, version, licence, purl, texts={path.name: read(path) for path in sorted(paths)})

    match crate["name"]:
        case "openssl-sys":
            # It is built by the crate openssl-src, which is no part of the program and so not in the list.
            source = Path(crate["sources"]["openssl-src"])
            version = source.name.partition("+")[2]
            return part("openssl", version, "Apache-2.0", [source / "openssl/LICENSE.txt"])
        case "rdkafka-sys":
            licence = "BSD-2-Clause AND BSD-3-Clause AND MIT AND Zlib"
            return part("librdkafka", upstream, licence, [folder / "librdkafka/LICENSES.txt"])
        case "libsqlite3-sys":
            version = defined(folder / "sqlite3/sqlite3.h", "SQLITE_VERSION")
            sqlite = part("sqlite", version, "blessing", [])
            sqlite.texts["public domain"] = PUBLIC_DOMAIN
            return sqlite
        case "libz-sys":
            version = defined(folder / "src/zlib/zlib.h", "ZLIB_VERSION")
            return part("zlib", version, "Zlib", [folder / "src/zlib/LICENSE"])
        case "zstd-sys":
            return part("zstd", upstream.removeprefix("zstd."), "BSD-3-Clause", [folder / "zstd/LICENSE"])
        case "ring":
            # Code of its own, which its own licence covers.
            return None
    raise Refused(
        f"expected to know what the crate {crate['name']} links ({crate['links']}), but found no word of it in "
        "deploy/release/third_party.py; say there which library it brings along, and under which licence"
    )


def crates(target):
    """Every crate that is linked in, and the libraries in C that they bring along."""
    shown = run("cargo", "tree", "--locked", "--edges", "normal,no-proc-macro", "--target", target, "--prefix", "none",
                "--format", "{p}")
    linked = {tuple(line.split()[:2]) for line in shown.splitlines() if line}
    metadata = json.loads(run("cargo", "metadata", "--locked", "--filter-platform", target, "--format-version", "1"))
    sums = {
        (package["name"], package["version"]): package.get("checksum")
        for package in tomllib.loads(read("Cargo.lock"))["package"]
    }
    sources = {crate["name"]: str(Path(crate["manifest_path"]).parent) for crate in metadata["packages"]}
    parts = []
    for crate in sorted(metadata["packages"], key=lambda crate: (crate["name"], crate["version"])):
        name, version = crate["name"], crate["version"]
        if (name, f"v{version}") not in linked or crate["source"] is None:
            continue
        folder = Path(crate["manifest_path"]).parent
        licence = re.sub(r"\s*/\s*", " OR ", crate["license"] or "")
        texts = texts_of(folder)
        if not texts and "Apache-2.0" in licence:
            texts = {"LICENSE": read("LICENSE")}
        elif not texts and licence == "MIT" and crate["authors"]:
            holders = ", ".join(author.partition(" <")[0] for author in crate["authors"])
            texts = {"LICENSE": MIT.format(holder=f"Copyright (c) {holders}")}
        purl = PackageURL("cargo", name=name, version=version)
        parts.append(Part(name, version, licence, purl, sums.get((name, version)), texts))
        if crate["links"]:
            brought = library(crate | {"sources": sources}, folder)
            parts += [brought] if brought else []
    return parts


def debian(name, version, licence, key):
    texts = {path: read(path) for path in DEBIAN_TEXTS[key] if Path(path).exists()}
    return Part(name, version, licence, PackageURL("generic", name=name, version=version), texts=texts)


def toolchain():
    """What the compilers link in: the standard libraries of Rust and C, and GCC's runtime."""
    rust = re.search(r"^release: (.+)$", run("rustc", "-vV"), re.MULTILINE)[1]
    glibc = run("getconf", "GNU_LIBC_VERSION").split()[1]
    gcc = run("cc", "-dumpfullversion").strip()
    std = Part("rust-std", rust, "MIT OR Apache-2.0", PackageURL("generic", name="rust-std", version=rust))
    std.texts["LICENSE"] = read("LICENSE")
    return [
        std,
        debian("glibc", glibc, "LGPL-2.1-or-later", "glibc"),
        debian("gcc-runtime", gcc, "GPL-3.0-or-later WITH GCC-exception-3.1", "gcc"),
    ]


def authorities():
    version = run("dpkg-query", "--show", "--showformat", "${Version}", "ca-certificates")
    return debian("ca-certificates", version, "MPL-2.0", "ca-certificates")


def judge(parts):
    """That each has a licence which is allowed, and its text."""
    allowed = set(tomllib.loads(read("deny.toml"))["licenses"]["allow"])
    wrong = [f"{part.name} {part.version}: expected the text of its licence, but found none" for part in parts
             if not part.texts]
    # cargo-deny judges the crates, by the same list; what it does not see is judged here.
    for part in parts:
        if part.purl.type == "cargo" or part.licence in SYSTEM_LICENCES or " OR " in part.licence:
            continue
        unknown = [licence for licence in part.licence.split(" AND ") if licence not in allowed]
        if unknown:
            wrong.append(f"{part.name} {part.version}: expected a licence of deny.toml, but found {', '.join(unknown)}")
    if wrong:
        raise Refused("\n".join(wrong))


def licences(parts):
    """One text, in which each licence's stands once, below the names of all that it covers."""
    covers = {}
    for part in parts:
        for name, text in part.texts.items():
            covers.setdefault(text.replace("\r\n", "\n").strip(), []).append(f"{part.name} {part.version} ({part.licence}): {name}")
    line = "-" * 80
    blocks = ["sendbird-bridge is licensed under the Apache License 2.0; see LICENSE. What is linked into it:"]
    blocks += ["\n".join(names) + f"\n{line}\n{text}" for text, names in covers.items()]
    return f"\n\n{line}\n".join(blocks) + "\n"


def component(part):
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=part.sha256)] if part.sha256 else []
    return Component(
        type=ComponentType.LIBRARY,
        name=part.name,
        version=part.version,
        purl=part.purl,
        bom_ref=str(part.purl),
        hashes=hashes,
        licenses=[LicenseExpression(part.licence)],
    )


def sbom(contents, parts, artefact):
    """The document, of a file if one is named, else of the program."""
    package = tomllib.loads(read("Cargo.toml"))["package"]
    hashes, seed = [], f"{package['name']} {package['version']} {contents}"
    if artefact:
        digest = hashlib.sha256(artefact.read_bytes()).hexdigest()
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
        seed = f"{artefact.name} {digest}"
    bom = Bom(components=[component(part) for part in parts])
    root = Component(
        type={"image": ComponentType.CONTAINER}.get(contents, ComponentType.APPLICATION),
        name=artefact.name if artefact else package["name"],
        version=package["version"],
        bom_ref="root",
        hashes=hashes,
        licenses=[LicenseExpression(package["license"])],
    )
    bom.metadata.component = root
    bom.metadata.timestamp = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, seed)
    bom.register_dependency(root, bom.components)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["licences", "sbom"])
    parser.add_argument("--target", required=True)
    parser.add_argument("--contents", choices=["program", "image", "chart"], default="program")
    parser.add_argument("--of", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    parts = [] if args.contents == "chart" else crates(args.target) + toolchain()
    judge(parts)
    if args.contents == "image":
        parts.append(authorities())
    args.out.write_text(
        licences(parts) if args.what == "licences" else sbom(args.contents, parts, args.of), encoding="utf-8"
    )


if __name__ == "__main__":
    try:
        main()
    except Refused as refused:
        raise SystemExit(f"third_party: {refused}") from None
