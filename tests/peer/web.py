"""HTTP requests from inside a lab."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from kproxy_lab.lab import Namespace

_SCRIPT = """
import http.client, json, sys
link = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=60)
link.request("GET", sys.argv[3])
reply = link.getresponse()
print(json.dumps([reply.status, dict(reply.getheaders()), reply.read().decode()]))
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """A status, the headers and the body."""

    status: int
    headers: Mapping[str, str]
    body: str


def get(source: Namespace, ip: str, port: int, path: str) -> Reply | None:
    """Send one GET request; return None without an answer."""
    done = source.run([sys.executable, "-c", _SCRIPT, ip, str(port), path], check=False)
    return Reply(*json.loads(done.stdout)) if done.returncode == 0 else None
