"""GNU parallel: /bin/true once per line of input."""

from __future__ import annotations

import shutil
import subprocess

from peer import TRUE, Took, run


def measure(n: int, slots: int, work: str) -> tuple[Took, str]:
    program = shutil.which("parallel")
    if program is None or work != "true":
        raise FileNotFoundError("there is no GNU parallel" if program is None else "it runs programs only")
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.split("\n")[0].split()[-1]
    lines = "".join(f"{i}\n" for i in range(n))
    with Took() as took:
        subprocess.run([program, "--will-cite", f"-j{slots}", TRUE], input=lines, text=True, check=True)
    return took, version


if __name__ == "__main__":
    run("gnu_parallel", measure)
