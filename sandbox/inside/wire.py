"""What the trainer, the mother and her children agree on: packets, descriptor numbers, the mark of a closed jail."""

from __future__ import annotations

import struct

REQUEST = struct.Struct("=IBddQQ")
"""Case number, processes, CPU seconds, wall seconds, bytes of memory, bytes a file; `FILES` descriptors a process.

No processes: the case of that number is to be ended.
"""
REPLY = struct.Struct("=Id")
"""Case number, wall seconds; one `PROCESS` a process follows."""
PROCESS = struct.Struct("=idQcH")
"""Wait status, CPU seconds, largest resident bytes, what the mother ended it for: `-`, `c` CPU, `w` wall, `x` since it
was told to, `r` too many refused calls; and a bit for each kind of refused call (seccomp.py) it was seen to try."""
FORKED = 0x7FFFFFFF
"""No process: a child asks to signal it, and is refused, so that the mother hears of a fork."""
FILES = 5
"""Standard input, output, error, the report and the payload."""

REPORT, LINK, PAYLOAD = 3, 4, 5
"""Where a child has them: what the judge reads, the other half of an assert test, what it is to do."""
HIGH = 64
"""Other descriptors are kept from here on, clear of those."""
READY = b"R"
"""Written over the payload's first byte once the jail is shut; the submission has no way to that file."""
