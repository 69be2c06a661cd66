"""An in-process Kubernetes API server, faithful enough for kube-proxy, kubectl and kproxy.

Tests need a server that fails on demand, and in milliseconds, in every way a real one fails; demos need
one without installation. Start with :class:`ApiServer` and :class:`Fault`.
"""

from kproxy_lab.apiserver.access import TlsFiles
from kproxy_lab.apiserver.errors import ApiError
from kproxy_lab.apiserver.faults import Action, Armed, Fault, FaultBook
from kproxy_lab.apiserver.journal import Journal, RequestRecord
from kproxy_lab.apiserver.resources import RESOURCES, Resource, ResourceTable
from kproxy_lab.apiserver.server import ApiServer

__all__ = [
    "RESOURCES",
    "Action",
    "ApiError",
    "ApiServer",
    "Armed",
    "Fault",
    "FaultBook",
    "Journal",
    "RequestRecord",
    "Resource",
    "ResourceTable",
    "TlsFiles",
]
