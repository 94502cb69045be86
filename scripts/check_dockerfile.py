"""Carry out the Dockerfile where there is no container engine, as far as that goes.

Each stage runs in a copy-on-write view of this machine (an overlay in a private mount namespace), which stands in for
the base image: COPY, RUN, ENV, WORKDIR and USER do there what they say, at their real paths; then the last stage's CMD
is started and its HEALTHCHECK polled. Nothing of this machine changes. Not exercised: FROM's image itself (the system
libraries of python:3.11-slim), VOLUME and EXPOSE, which are only read, and the options of HEALTHCHECK.

Needs root, Linux with overlayfs, unshare, iproute2 and 25 GB of free space; takes a few minutes and prints each step.
Exit code 0: all passed. Usage: .venv/bin/python scripts/check_dockerfile.py [--parse-only] [--torch-index ADDRESS]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path.home() / ".cache/uv"
HEALTHY_WITHIN_S = 180


class CheckError(Exception):
    """An instruction that would fail in an engine too."""


@dataclass
class Stage:
    """One FROM and what it has said so far."""

    name: str
    instructions: list[tuple[str, str]]
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "root"
    cmd: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


def parse(text: str) -> list[Stage]:
    """The stages of a Dockerfile, each with its (instruction, arguments) in order."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stages.append(Stage(name=rest.split(" AS ")[-1], instructions=[]))
        else:
            stages[-1].instructions.append((word, rest.strip()))
    return stages


def is_sent(path: Path, patterns: list[str]) -> bool:
    """Whether .dockerignore lets a path of the checkout into the build; the last pattern that fits decides."""
    parts = path.relative_to(ROOT).parts
    sent = True
    for pattern in patterns:
        keep, glob = pattern.startswith("!"), pattern.removeprefix("!")
        heads = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        names = parts if glob.startswith("**/") else ()
        if any(fnmatch(head, glob) for head in heads) or any(fnmatch(name, glob[3:]) for name in names):
            sent = keep
    return sent


def context_files(source: str, patterns: list[str]) -> list[Path]:
    """Files that COPY takes from the checkout for one source; raises CheckError when there is none."""
    path = ROOT / source
    found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    files = [file for file in found if is_sent(file, patterns)]
    if not files:
        raise CheckError(f"COPY {source}: missing, empty or left out by .dockerignore")
    return files


class Builder:
    """Runs stages below `folder`, the upper layers and mount point of the overlays."""

    def __init__(self, folder: Path, build_arguments: dict[str, str]) -> None:
        self.folder = folder
        self.arguments = build_arguments
        self.patterns = [
            line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and not line.startswith("#")
        ]

    def layer(self, stage: Stage) -> Path:
        return self.folder / stage.name.replace(":", "-") / "upper"

    def inside(self, stage: Stage, command: list[str], own_network: bool = False) -> list[str]:
        """The command line that runs `command` in the stage's root, as its user, with its environment."""
        layer = self.layer(stage)
        work, root = layer.with_name("work"), layer.with_name("root")
        for path in (layer, work, root):
            path.mkdir(parents=True, exist_ok=True)
        base = {
            "PATH": f"{Path(sys.executable).resolve().parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin",
            "LANG": "C.UTF-8",
            "HOME": "/root" if stage.user == "root" else f"/home/{stage.user}",
        }
        passed = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "UV_", "SSL_"))}
        environment = [f"{key}={value}" for key, value in (base | passed | self.expanded(stage, base)).items()]
        user = (
            []
            if stage.user == "root"
            else ["setpriv", f"--reuid={stage.user}", f"--regid={stage.user}", "--init-groups"]
        )
        run = ["env", "-i", "-C", stage.workdir, *environment, *user, *command]
        network = "ip link set lo up && " if own_network else ""
        script = (
            f"{network}mount -t overlay overlay -o lowerdir=/,upperdir={layer},workdir={work} {root} && "
            f"mount --rbind /dev {root}/dev && mount -t proc proc {root}/proc && "
            f"mkdir -p {root}{CACHE} {CACHE} && mount --bind {CACHE} {root}{CACHE} && "
            f"exec chroot {root} {shlex.join(run)}"
        )
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *(["--net"] if own_network else [])]
        return [*unshare, "sh", "-c", script]

    def expanded(self, stage: Stage, base: dict[str, str]) -> dict[str, str]:
        return {key: value.replace("$PATH", base["PATH"]) for key, value in stage.env.items()}

    def copy(self, stage: Stage, text: str, stages: list[Stage]) -> None:
        *sources, target = shlex.split(text)
        if sources[0].startswith("--from="):
            origin = next(other for other in stages if other.name == sources[0].removeprefix("--from="))
            source = self.layer(origin) / sources[1].lstrip("/")
            if not source.exists():
                raise CheckError(f"COPY {text}: the stage {origin.name} has no {sources[1]}")
            target_path = self.layer(stage) / target.lstrip("/")
            # The origin is finished: its files can move instead of being copied.
            target_path.mkdir(parents=True, exist_ok=True)
            for entry in source.iterdir():
                shutil.move(entry, target_path / entry.name)
            return
        destination = self.layer(stage) / stage.workdir.lstrip("/") / target
        for source_name in sources:
            for file in context_files(source_name, self.patterns):
                below = file.relative_to(ROOT / source_name) if file != ROOT / source_name else Path(file.name)
                path = destination / below
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, path)

    def instruct(self, stage: Stage, word: str, text: str, stages: list[Stage]) -> None:
        """Carry out one instruction."""
        if word == "RUN":
            command = re.sub(r"--mount=\S+\s*", "", text)
            if subprocess.run(
                self.inside(stage, ["sh", "-c", command]), check=False, stdin=subprocess.DEVNULL
            ).returncode:
                raise CheckError(f"RUN {command}: failed")
        elif word == "COPY":
            self.copy(stage, text, stages)
        elif word == "ENV":
            stage.env |= dict(pair.split("=", 1) for pair in shlex.split(text))
        elif word == "ARG":
            name, _, default = text.partition("=")
            stage.env[name] = self.arguments.get(name, default.strip('"'))
        elif word == "WORKDIR":
            stage.workdir = text
            (self.layer(stage) / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            stage.user = text
        elif word == "CMD":
            stage.cmd = json.loads(text)
        elif word == "HEALTHCHECK":
            stage.healthcheck = json.loads(text.partition("CMD ")[2])
        elif word not in ("VOLUME", "EXPOSE"):
            raise CheckError(f"{word}: this check does not know the instruction")

    def serve(self, stage: Stage) -> None:
        """Start CMD on a network of its own, wait until HEALTHCHECK passes, and end both."""
        script = (
            f"{shlex.join(stage.cmd)} & server=$!; for second in $(seq {HEALTHY_WITHIN_S}); do "
            f"if {shlex.join(stage.healthcheck)} 2>/dev/null; then exit 0; fi; "
            "kill -0 $server || exit 1; sleep 1; done; exit 1"
        )
        # The shell is the first process of its namespace: when it exits, the kernel ends the server.
        command = self.inside(stage, ["sh", "-c", script], own_network=True)
        if subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode:
            raise CheckError(f"CMD and HEALTHCHECK: the server ended, or was not healthy within {HEALTHY_WITHIN_S} s")


def prepare(builder: Builder, stage: Stage) -> None:
    """Make the stand-in base image: a Python 3.11 that every user may run, as python:3.11-slim has."""
    home = Path(sys.executable).resolve()
    opened = " ".join(shlex.quote(str(parent)) for parent in home.parents if parent != Path("/"))
    subprocess.run(builder.inside(stage, ["sh", "-c", f"chmod a+rx {opened}"]), check=True)


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--parse-only", action="store_true", help="read the Dockerfile and check what COPY takes")
    options.add_argument("--torch-index", default="", help="value of the build argument TORCH_INDEX")
    arguments = options.parse_args()
    stages = parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    folder = Path(tempfile.mkdtemp(prefix="dockerfile-", dir="/var/tmp"))
    builder = Builder(folder, {"TORCH_INDEX": arguments.torch_index})
    try:
        for stage in stages:
            if not arguments.parse_only:
                prepare(builder, stage)
            for word, text in stage.instructions:
                if not (arguments.parse_only and (word == "RUN" or "--from=" in text)):
                    print(f"[{stage.name}] {word} {text}", flush=True)
                    builder.instruct(stage, word, text, stages)
        if not arguments.parse_only:
            print("[server] CMD until HEALTHCHECK passes", flush=True)
            builder.serve(stages[-1])
    except CheckError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
