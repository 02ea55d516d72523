"""Owns: what is checked of the files of a release, without installing them.

Promises: prints one line for each check and the faults below it, and exits 1 if there is any. Changes nothing.

Usage: artefacts.py DIST --commit ID --time SECONDS --helm PROGRAM --buildah PROGRAM --scratch DIR
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tomllib
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

NAME = "sendbird-bridge"
ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["package"]["version"]
# What cargo does not tell of: it must be in every SBOM of the program.
BROUGHT = {"openssl", "librdkafka", "sqlite", "zlib", "zstd", "glibc", "gcc-runtime", "rust-std"}


class Fault(Exception):
    """What was expected, and what was found."""


def expect(what, expected, found):
    if expected != found:
        raise Fault(f"{what}: expected {expected!r}, but found {found!r}")


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, check=False, **options)
    if done.returncode != 0:
        raise Fault(f"{command[0]} {command[1]}: {(done.stderr + done.stdout).decode(errors='replace').strip()}")
    return done.stdout


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Release:
    """The files of one architecture."""

    def __init__(self, args):
        self.args = args
        self.dist = args.dist
        tarballs = list(self.dist.glob(f"{NAME}-{VERSION}-linux-*.tar.gz"))
        expect("tarballs of the version in Cargo.toml", 1, len(tarballs))
        self.tarball = tarballs[0]
        self.architecture = self.tarball.name.removeprefix(f"{NAME}-{VERSION}-linux-").removesuffix(".tar.gz")
        self.package = self.dist / f"{NAME}_{VERSION}-1_{self.architecture}.deb"
        self.image = self.dist / f"{NAME}-{VERSION}-linux-{self.architecture}.oci.tar"
        self.chart = self.dist / f"{NAME}-{VERSION}.tgz"
        self.artefacts = [self.tarball, self.package, self.image, self.chart]
        self.folder = self.args.scratch / self.tarball.name.removesuffix(".tar.gz")
        with tarfile.open(self.tarball) as tar:
            self.members = tar.getmembers()
            tar.extractall(self.args.scratch, filter="data")
        self.program = self.folder / NAME

    def files(self):
        """There are these files and no others, and their checksums are right"""
        wanted = {path.name for path in self.artefacts}
        wanted |= {f"{name}.cdx.json" for name in wanted}
        lines = (self.dist / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
        expect("names in SHA256SUMS", sorted(wanted), sorted(sums))
        expect("files", sorted(wanted | {"SHA256SUMS"}), sorted(path.name for path in self.dist.iterdir()))
        for name, digest in sums.items():
            expect(name, digest, sha256((self.dist / name).read_bytes()))

    def sboms(self):
        """Each artefact has a valid SBOM, which names its bytes and what no crate's licence names"""
        for artefact in self.artefacts:
            path = self.dist / f"{artefact.name}.cdx.json"
            text = path.read_text(encoding="utf-8")
            fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
            if fault:
                raise Fault(f"{path.name}: {fault}")
            document = json.loads(text)
            expect(path.name, [{"alg": "SHA-256", "content": sha256(artefact.read_bytes())}],
                   document["metadata"]["component"]["hashes"])
            names = {component["name"] for component in document.get("components", [])}
            if artefact == self.chart:
                expect("components of the chart", set(), names)
                continue
            wanted = BROUGHT | {"rdkafka", "lapin", "async-nats"}
            wanted |= {"ca-certificates"} if artefact == self.image else set()
            expect(f"missing in {path.name}", set(), wanted - names)
            unlicensed = [part["name"] for part in document["components"] if not part.get("licenses")]
            expect(f"without a licence in {path.name}", [], unlicensed)

    def licences(self):
        """The licences that come with the program cover each component of its SBOM"""
        text = (self.folder / "THIRD-PARTY-LICENSES").read_text(encoding="utf-8")
        covered = set(re.findall(r"^(\S+ \S+) \([^\n]*\): ", text, re.MULTILINE))
        inside = json.loads((self.folder / f"{NAME}.cdx.json").read_text(encoding="utf-8"))
        components = {f"{part['name']} {part['version']}" for part in inside["components"]}
        expect("components without a text", set(), components - covered)
        expect("texts without a component", set(), covered - components)
        outside = json.loads((self.dist / f"{self.tarball.name}.cdx.json").read_text(encoding="utf-8"))
        expect("components of the SBOM inside and of that beside it", inside["components"], outside["components"])

    def tarballs(self):
        """The tarball has the program, pages, completions; all of it root's, and of the time of the commit"""
        names = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        wanted = {NAME, "LICENSE", "README.md", "CHANGELOG.md", "THIRD-PARTY-LICENSES", f"{NAME}.cdx.json", "reference.toml",
                  "production.toml", f"systemd/{NAME}.service", "systemd/sysusers.conf", f"man/{NAME}.1",
                  *(f"completions/{NAME}.{shell}" for shell in ("bash", "zsh", "fish"))}
        expect("missing", set(), wanted - names)
        shown = run(self.program, "help").decode()
        commands = re.findall(r"^  ([a-z-]+) ", shown.partition("Commands:")[2].partition("Options:")[0], re.MULTILINE)
        pages = {f"man/{NAME}-{command}.1" for command in commands if command != "help"}
        if len(pages) < 10:
            raise Fault(f"expected ten commands or more, but found {commands}")
        expect("pages that are missing", set(), pages - names)
        for member in self.members:
            expect(f"owner and time of {member.name}", (0, 0, self.args.time), (member.uid, member.gid, member.mtime))

    def programs(self):
        """The program is static, names its commit, and no folder that it was built in"""
        if "INTERP" in run("readelf", "--program-headers", "--wide", self.program).decode():
            raise Fault("expected a static program, but found one that asks for a loader")
        version = run(self.program, "--version", env={}).decode().strip()
        if f"{NAME} {VERSION} (commit {self.args.commit}, " not in version:
            raise Fault(f"expected version {VERSION} and commit {self.args.commit}, but found {version}")
        content = self.program.read_bytes()
        for folder in (str(Path.home()), str(ROOT), "/tmp"):
            if (at := content.find(f"{folder}/".encode())) >= 0:
                raise Fault(f"expected no {folder} in the program, but found {content[at : at + 80]!r}")
        if b"built on: Thu Jan  1 00:00:00 1970" not in content:
            raise Fault("expected OpenSSL to be built on Thu Jan  1 00:00:00 1970, but found another time")

    def packages(self):
        """The Debian package has the same program, and its version and architecture"""
        fields = run("dpkg-deb", "--field", self.package, "Package", "Version", "Architecture").decode()
        expect("fields", f"Package: {NAME}\nVersion: {VERSION}-1\nArchitecture: {self.architecture}\n", fields)
        with tarfile.open(fileobj=io.BytesIO(run("dpkg-deb", "--fsys-tarfile", self.package))) as tar:
            for member in tar.getmembers():
                expect(f"owner of {member.name}", (0, 0), (member.uid, member.gid))
                if member.mtime > self.args.time:
                    raise Fault(f"{member.name}: expected no time after the commit's, but found {member.mtime}")
            inside = tar.extractfile(f"./usr/bin/{NAME}").read()
        expect("the program", sha256(self.program.read_bytes()), sha256(inside))

    def images(self):
        """The image is read by buildah, runs as nobody, and has the same program and the licences"""
        with tarfile.open(self.image) as tar:
            blobs = {member.name.rpartition("/")[2]: tar.extractfile(member).read()
                     for member in tar.getmembers() if member.isfile() and "/blobs/sha256/" in member.name}
        for digest, blob in blobs.items():
            expect("digest of a blob", digest, sha256(blob))
        command = (self.args.buildah, "--storage-driver", "vfs", "--root", self.args.scratch / "storage", "--runroot",
                   self.args.scratch / "run")
        image = run(*command, "pull", "--quiet", f"oci-archive:{self.image}").decode().strip()
        described = json.loads(run(*command, "inspect", "--type", "image", image))["OCIv1"]
        config = described["config"]
        expect("architecture", self.architecture, described["architecture"])
        expect("user and command", ("65532:65532", [f"/{NAME}"], ["serve"]),
               (config["User"], config["Entrypoint"], config["Cmd"]))
        labels = config["Labels"]
        expect("labels", (VERSION, self.args.commit),
               tuple(labels.get(f"org.opencontainers.image.{key}") for key in ("version", "revision")))
        container = run(*command, "from", "--pull-never", image).decode().strip()
        mounted = Path(run(*command, "mount", container).decode().strip())
        files = sorted(str(path.relative_to(mounted)) for path in mounted.rglob("*") if path.is_file())
        expect("files", ["etc/ssl/certs/ca-certificates.crt", "licenses/LICENSE", "licenses/THIRD-PARTY-LICENSES", NAME], files)
        expect("the program", sha256(self.program.read_bytes()), sha256((mounted / NAME).read_bytes()))
        run("chroot", "--userspec=65532:65532", mounted, f"/{NAME}", "--version")
        run(*command, "umount", container)

    def charts(self):
        """The chart is installed from its package, with the image of this version"""
        values = ROOT / f"deploy/helm/{NAME}/ci/stdout-values.yaml"
        run(self.args.helm, "lint", "--strict", self.chart, "--values", values)
        rendered = run(self.args.helm, "template", "calls", self.chart, "--values", values).decode()
        tags = set(re.findall(rf"image: \"?\S*{NAME}:([^\s\"]+)", rendered))
        expect("tags of the image", {VERSION}, tags)
        with tarfile.open(self.chart) as tar:
            expect("links", [], [member.name for member in tar.getmembers() if member.issym()])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--time", type=int, required=True)
    parser.add_argument("--helm", required=True)
    parser.add_argument("--buildah", default="buildah")
    parser.add_argument("--scratch", type=Path, required=True)
    release = Release(parser.parse_args())
    failed = 0
    for check in (release.files, release.sboms, release.licences, release.tarballs, release.programs, release.packages,
                  release.images, release.charts):
        try:
            check()
            print(f"ok      {check.__doc__}")
        except Fault as fault:
            failed += 1
            print(f"FAILED  {check.__doc__}\n        {fault}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
