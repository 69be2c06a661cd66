"""One site for the session; skipped with the reason where there is no kube-proxy to compare with."""

from collections.abc import Iterator

import pytest

from kproxy_lab.lab import Lab
from tests.peer.contenders import Peer, PeerError
from tests.peer.site import Site, build


@pytest.fixture(scope="session")
def peer() -> Peer:
    try:
        found = Peer.find()
    except PeerError as error:
        pytest.skip(str(error))
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    return found


@pytest.fixture(scope="session")
def whole_site(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with build(peer, tmp_path_factory.mktemp("peer")) as made:
        made.settle()
        yield made


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    """The site; what a test writes is deleted after it."""
    yield whole_site
    whole_site.forget()
