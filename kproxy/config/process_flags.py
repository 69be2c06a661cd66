"""Flags that control one process; the configuration file has no field for them."""

from typing import Annotated

from kproxy.config.settings import NODE, RULES, Group, Section, restart
from kproxy.config.values import FilePath, NotNegativeDuration, within


class ProcessFlags(Section, frozen=True):
    """Flags that are no field of either document.

    `healthz_port` and `metrics_port` are converted to the addresses that replaced them.
    """

    config: Annotated[
        FilePath,
        restart(
            "config",
            "KubeProxyConfiguration file. As with kube-proxy, most flags are ignored if it is given.",
            RULES,
        ),
    ] = ""
    master: Annotated[
        str, restart("master", "URL of the API server; overrides the kubeconfig.", NODE, metavar="URL")
    ] = ""
    replay: Annotated[
        FilePath,
        restart(
            "replay",
            "Take objects, node and settings from this file of `kproxy record`. Flags override its settings.",
            RULES,
        ),
    ] = ""
    at: Annotated[
        int,
        within(0, 2**63 - 1),
        restart("at", "With --replay: stop after this event; 0: play all.", RULES, metavar="N"),
    ] = 0
    write_config_to: Annotated[
        FilePath, restart("write-config-to", "Write the resulting configuration to this file and exit.")
    ] = ""
    once: Annotated[
        bool, restart("once", "Exit after one complete sync; status 0 if all of it was applied.")
    ] = False
    timeout: Annotated[
        NotNegativeDuration,
        restart("timeout", "Time limit of --once; 0: none. After it, kproxy exits with status 1."),
    ] = 300.0
    init_only: Annotated[
        bool, restart("init-only", "Set the kernel parameters that need full root privileges and exit.")
    ] = False
    cleanup: Annotated[
        bool, restart("cleanup", "Remove all kernel objects of kproxy and exit, as `kproxy cleanup` does.")
    ] = False
    healthz_port: Annotated[
        int,
        restart(
            "healthz-port",
            "Deprecated: use --healthz-bind-address. 0 disables the server.",
            group=Group.SERVERS,
            replaced_by="healthz-bind-address",
        ),
    ] = 10256
    metrics_port: Annotated[
        int,
        restart(
            "metrics-port",
            "Deprecated: use --metrics-bind-address. 0 disables the server.",
            group=Group.SERVERS,
            replaced_by="metrics-bind-address",
        ),
    ] = 10249
