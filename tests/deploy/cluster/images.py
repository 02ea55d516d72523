"""Owns: container images made of a folder, without a registry and without an engine.

Promises: `archive` writes what `docker save` would of an image of one layer, in which every file has the owner that
`owner` gives it and the same time, so that equal folders make equal images.
"""

import hashlib
import io
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

# The user that deploy/build-rootfs makes the journal's directory for.
USER = 65532
AUTHORITIES = "etc/ssl/certs/ca-certificates.crt"
JOURNAL = "./var/lib/sendbird-bridge"
DOCKERFILE = Path(__file__).resolve().parents[3] / "deploy/Dockerfile"


def archive(path, name, config, folder):
    """Writes the image to the path."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(folder, arcname=".", filter=owner)
    layer = layer.getvalue()
    digest = hashlib.sha256(layer).hexdigest()
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created_by": "tests/deploy/cluster"}],
    }
    image = json.dumps(image).encode()
    image_name = f"{hashlib.sha256(image).hexdigest()}.json"
    manifest = [{"Config": image_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        for file, content in ((image_name, image), ("layer.tar", layer), ("manifest.json", json.dumps(manifest).encode())):
            info = tarfile.TarInfo(file)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def bridge_config():
    """How the bridge's image is run: what deploy/Dockerfile says of its last stage."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.rpartition("\nFROM ")[2].splitlines() if line and line[0].isupper()]
    said = {word: value for word, value in lines}
    return {
        "User": said["USER"],
        "Env": shlex.split(said["ENV"]),
        "WorkingDir": said["WORKDIR"],
        "Entrypoint": json.loads(said["ENTRYPOINT"]),
        "Cmd": json.loads(said["CMD"]),
    }


def owner(info):
    """The journal's directory is the bridge's, all else is root's."""
    info.uid = info.gid = USER if info.name.startswith(JOURNAL) else 0
    info.uname = info.gname = ""
    info.mtime = 0
    return info


def folder_of(program, folder):
    """A root file system as that of deploy/build-rootfs, of a program that need not be static: with its libraries."""
    folder.mkdir()
    subprocess.run(["strip", "-o", folder / "sendbird-bridge", program], check=True)
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    for word in linked.split():
        if word.startswith("/"):
            library = folder / word.lstrip("/")
            library.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(word, library)
            library.chmod(0o755)
    authorities = folder / AUTHORITIES
    authorities.parent.mkdir(parents=True)
    shutil.copyfile(f"/{AUTHORITIES}", authorities)
    (folder / JOURNAL).mkdir(parents=True, mode=0o700)
    return folder


if __name__ == "__main__":
    folder_of(Path(sys.argv[1]), Path(sys.argv[2]))
