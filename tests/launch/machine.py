"""Scripts run as a user runs them, with stand-ins for gcloud, sbatch, kubectl and more that write down each call."""

import os
import pathlib
import shlex
import shutil
import subprocess
from collections.abc import Sequence

REPOSITORY = pathlib.Path(__file__).parents[2]

# Whatever else is installed here, a test does not find it.
TOOLS = (
    "bash basename cat chmod cp cut date dirname env flock git grep gzip head hostname id mkdir mktemp mv nohup rm"
)
TOOLS += " sed setsid sort tail tar tee touch tr uname wc xargs"


class Machine:
    """A machine of which only the listed programs exist: bash's own, and stand-ins made with `program`."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.home = folder / "home"
        self.code = folder / "code"  # a checkout that only the scripts of scripts/launch are in
        for path in (self.bin, self.home):
            path.mkdir()
        for name in TOOLS.split():
            if found := shutil.which(name):
                (self.bin / name).symlink_to(found)
        shutil.copytree(REPOSITORY / "scripts" / "launch", self.code / "scripts" / "launch")
        self.program("sleep", record=False)  # nobody waits

        self.environment = {
            "PATH": str(self.bin),
            "HOME": str(self.home),
            "CALLS": str(folder / "calls"),
            "TMPDIR": str(folder),
        }

    def program(self, name: str, body: str = "", *, record: bool = True) -> None:
        """A stand-in that writes down how it is called (if `record`) and then does `body`."""
        note = 'printf "%s\\0" "${0##*/}" "$@" >>"$CALLS"; printf "\\n" >>"$CALLS"' if record else ""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{note}\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    def calls(self, name: str | None = None) -> list[list[str]]:
        """What was called, in order: the program's name and its arguments."""
        path = self.folder / "calls"
        if not path.exists():
            return []
        lines = [line.split("\0") for line in path.read_text(encoding="utf-8").removesuffix("\0\n").split("\0\n")]
        return [line for line in lines if name in (None, line[0])]

    def run(self, command: str | Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the checkout, given as words or as one would type it."""
        words = shlex.split(command) if isinstance(command, str) else list(command)
        env = self.environment | variables
        return subprocess.run(words, cwd=self.code, env=env, capture_output=True, text=True, timeout=120)

    def refuses(self, command: str, message: str) -> None:
        """Runs a command that must end with exit code 2, nothing on stdout, and an error with this in it."""
        done = self.run(command)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert message in done.stderr

    def commit(self) -> None:
        """Makes the checkout a git repository with one commit."""
        git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
            subprocess.run([*git, *words], cwd=self.code, check=True, env=os.environ | {"HOME": str(self.home)})
