"""Runs a kube-proxy older than 1.21, which reads the beta version of EndpointSlices, for `kproxy bench`.

    kproxy bench --peer 'kube-proxy-1.20=.venv/bin/python -m benchmarks.beta_slices /path/kube-proxy'

A forwarder before the API server renames the version both ways, in a session of its own, so that neither its
time nor its memory counts as the proxy's; this process becomes the proxy.
"""

import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout, web

_BETA, _STABLE = b"discovery.k8s.io/v1beta1", b"discovery.k8s.io/v1"
_OURS, _THEIRS = b'"%s"' % _STABLE, b'"%s"' % _BETA
_SERVER = re.compile(r"http://[^\s\"']+")
_KUBECONFIG = "--kubeconfig="


def main(arguments: list[str]) -> None:
    """Exec the program of `arguments` with a --kubeconfig that leads to the forwarder."""
    place = next(n for n, argument in enumerate(arguments) if argument.startswith(_KUBECONFIG))
    kubeconfig = Path(arguments[place].removeprefix(_KUBECONFIG))
    text = kubeconfig.read_text(encoding="utf-8")
    upstream = _SERVER.findall(text)[0]
    forwarder = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", __spec__.name, "--forward", upstream],
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert forwarder.stdout is not None  # noqa: S101 - asked for
    own = kubeconfig.with_name(f"{kubeconfig.name}.beta")
    own.write_text(text.replace(upstream, forwarder.stdout.readline().strip()), encoding="utf-8")
    arguments[place] = f"{_KUBECONFIG}{own}"
    os.execvp(arguments[0], arguments)  # noqa: S606 - no shell, which is the point


async def _serve(upstream: str) -> web.Application:
    session = ClientSession(timeout=ClientTimeout(total=None), auto_decompress=False)

    async def forward(request: web.Request) -> web.StreamResponse:
        path = request.path_qs.replace(_BETA.decode(), _STABLE.decode())
        names = request.headers.keys() & {"Accept", "Content-Type"}
        headers = {name: request.headers[name] for name in names}
        body = await request.read()
        async with session.request(request.method, upstream + path, headers=headers, data=body) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            async for data in _renamed(answer.content.iter_any()):
                await response.write(data)
            await response.write_eof()
        return response

    async def close(_: web.Application) -> None:
        await session.close()

    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", forward)
    app.on_cleanup.append(close)
    return app


async def _renamed(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes with the beta version's name, which may lie across the end of a piece."""
    rest = b""
    async for piece in pieces:
        rest = (rest + piece).replace(_OURS, _THEIRS)
        begun = next((n for n in range(len(_OURS) - 1, 0, -1) if rest.endswith(_OURS[:n])), 0)
        ready, rest = rest[: len(rest) - begun], rest[len(rest) - begun :]
        if ready:
            yield ready
    if rest:
        yield rest


def _forward(upstream: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    web.run_app(_serve(upstream), sock=listener, print=None, access_log=None)


if __name__ == "__main__":
    if sys.argv[1] == "--forward":
        _forward(sys.argv[2])
    else:
        main(sys.argv[1:])
