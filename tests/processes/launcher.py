"""What `accelerate launch` is to one trainer, without its imports: a parent that waits and knows nothing of signals."""

import subprocess
import sys

if __name__ == "__main__":
    command = [sys.executable, *sys.argv[1:]]
    process = subprocess.Popen(command)
    process.wait()
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
