"""An image's files and a container's process without Docker: a folder, a virtual environment, its own variables.

What a Dockerfile does to its own folders is done below one folder, absolute paths moved there. What it does to the
system (packages of the distribution, users) is left out and named. All stages share the folder.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docker.dockerfile import DockerfileError, expand

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from docker.dockerfile import Stage, Step

_OWN = re.compile(r"(?<![\w.:/-])/(?=(?:opt|work|published)(?:[/\s\"',:;]|$))")
_ABSOLUTE = re.compile(r"(?<![\w.:/-])/\w")
IMAGE_USER = 10001
"""That both images run as; a test compares."""
_SYSTEM = ("apt-get", "useradd")
_PYTHON = re.compile(r"python3(?:\.\d+)?")
_BASE_PATH = "/usr/local/bin:/usr/bin:/bin"


class Replica:
    """The files of an image, and what runs in it.

    Args:
        root: An empty folder, which others may enter.
        context: The project's folder.
        python: The interpreter that stands for the image's.
        say: Told what is done and what is left out.
    """

    def __init__(self, root: Path, context: Path, python: str, say: Callable[[str], None]) -> None:
        self._root, self._context, self._say = root, context, say
        self._user = _user_for(python, say)
        self._tools = root / "tools"
        self._tools.mkdir()
        for name in ("python3", Path(python).name):
            wrapper = self._tools / name
            wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n', "utf-8")
            wrapper.chmod(0o755)

    def place(self, text: str) -> str:
        """Move the absolute paths of the image's own folders in a text below the root."""
        return _OWN.sub(f"{self._root}/", text)

    def build(self, stages: list[Stage]) -> None:
        """Do what the stages do.

        Raises:
            DockerfileError: A copy from outside the context, or between different paths of two stages.
            CalledProcessError: A command failed.
        """
        for stage in stages:
            self._say(f"FROM {stage.image}")
            folder = self._root
            for step in stage.steps:
                if step.kind == "WORKDIR":
                    folder = Path(self.place(step.text))
                    folder.mkdir(parents=True, exist_ok=True)
                elif step.kind == "COPY":
                    self._copy(step, folder)
                else:
                    self._run(step, folder)

    def _copy(self, step: Step, folder: Path) -> None:
        *sources, target = step.text.split()
        if "from" in step.options:
            if sources != [target]:
                raise DockerfileError(f"COPY --from {step.text}: stages share their files here, so paths must be equal")
            return
        into = folder / self.place(target)
        for source in sources:
            if source not in _context_of(self._context):
                raise DockerfileError(f"COPY {source}: .dockerignore keeps it out of the context")
            path = self._context / source
            if path.is_dir():
                shutil.copytree(path, into, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                shutil.copy2(path, into)

    def _run(self, step: Step, folder: Path) -> None:
        kept = []
        for command in (part.strip() for part in step.text.split("&&")):
            moved = self.place(command)
            words = shlex.split(moved)
            if words[0] == "install":  # --directory: with an owner that is no user here
                for word in words:
                    if word.startswith("/"):
                        self.give(Path(word))
            elif words[0] in _SYSTEM or _ABSOLUTE.search(_OWN.sub("", command)):
                self._say(f"  left out, for it changes the system: {command}")
            else:
                kept.append(moved)
        if not kept:
            return
        line = " && ".join(kept)
        self._say(f"  RUN {line}")
        path = f"{self._tools}:{os.environ['PATH']}"
        # A build has neither this project's variables nor those of the interpreter that runs this.
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("DVIB_", "PYTHON", "VIRTUAL_ENV"))}
        variables = {**inherited, **step.variables, "PATH": path}
        subprocess.run(["/bin/sh", "-ec", line], cwd=folder, env=variables, check=True)

    def give(self, folder: Path) -> None:
        """Make a folder of the image's user."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._user:
            os.chown(folder, self._user["user"], self._user["group"])

    def start(
        self, stage: Stage, command: list[str], variables: Mapping[str, str], *, quiet: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a process as a container of the stage would: its environment alone, its folder, its user.

        Args:
            stage: The image.
            command: In exec form.
            variables: Added to the image's environment.
            quiet: Whether what it prints is thrown away.
        """
        output = subprocess.DEVNULL if quiet else None
        environment = self.environment(stage, variables)
        program = shutil.which(command[0], path=environment["PATH"])
        if program is None:
            raise DockerfileError(f"{command[0]} is not on the image's PATH")
        return subprocess.Popen(
            [program, *(self.place(word) for word in command[1:])],
            cwd=self.place(stage.folder),
            env=environment,
            stdout=output,
            stderr=output,
            **self._user,
        )

    def run(
        self, stage: Stage, command: list[str], variables: Mapping[str, str], timeout_s: float, *, quiet: bool = False
    ) -> int:
        """Run a command to its end and return its exit code; see `start`."""
        with self.start(stage, command, variables, quiet=quiet) as process:
            try:
                return process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                return -signal.SIGKILL

    def environment(self, stage: Stage, variables: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a container."""
        texts = {**stage.environment, **variables}
        environment = {name: self.place(expand(value, {"PATH": _BASE_PATH})) for name, value in texts.items()}
        return {"PATH": _BASE_PATH, **environment}

    def files(self, *left_out: str) -> dict[str, tuple[int, int]]:
        """Return every file's time and size, of which a read-only image may change none.

        Args:
            left_out: Folders that are volumes.
        """
        volumes = tuple(self.place(folder) + os.sep for folder in left_out)
        found = {}
        for path in self._root.rglob("*"):
            if not str(path).startswith(volumes) and stat.S_ISREG((status := path.lstat()).st_mode):
                found[str(path)] = (status.st_mtime_ns, status.st_size)
        return found


def _user_for(python: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the image's user as `subprocess` takes it; nothing where that user cannot run the interpreter."""
    user: dict[str, Any] = {"user": IMAGE_USER, "group": IMAGE_USER, "extra_groups": []}
    try:
        if subprocess.run([python, "-c", ""], capture_output=True, check=False, **user).returncode == 0:
            return user
    except PermissionError:
        pass
    say(f"user {IMAGE_USER} cannot be taken on here or cannot run {python}: processes run as the one who runs this")
    return {}


def _context_of(folder: Path) -> set[str]:
    lines = (folder / ".dockerignore").read_text("utf-8").splitlines()
    if lines[0] != "*":
        raise DockerfileError(".dockerignore: wanted '*' first, then what is let in")
    return {line[1:] for line in lines if line.startswith("!")}
