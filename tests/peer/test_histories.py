"""Random histories: packets have the same outcome with all contenders after every step."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy_lab.apiserver import ApiError
from tests.peer.site import Site
from tests.peer.strategies import SETTINGS, histories

pytestmark = [pytest.mark.root, pytest.mark.timeout(3000)]

EXAMPLES = int(os.environ.get("KPROXY_PEER_EXAMPLES", "15"))


@settings(SETTINGS, max_examples=EXAMPLES)
@given(data=st.data())
def test_packets_fare_alike_after_any_history(data: st.DataObject, site: Site) -> None:
    site.forget()
    for step in data.draw(histories(site.peer.version)):
        for what, value in step:
            if what == "delete":
                site.delete(*value)
                continue
            for obj in value:
                try:
                    site.write(obj)
                except ApiError:
                    continue  # no API server would store it
        site.settle()
        found = site.differences()
        assert not found, "\n".join(found)
