"""The component for NetworkPolicies: it grants the rights that its kinds need, and overlays alone do not."""

import shutil
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from kproxy.cli.run import run
from kproxy.state.kinds import KINDS, POLICY_KINDS
from tests.manifests.kustomize import OVERLAYS, built, needs_kubectl, one, pod_spec
from tests.manifests.openapi import documents, problems
from tests.manifests.queries import ROOT
from tests.manifests.test_migration import BLOCKS, printed

FLAG = "--network-policy"


def with_component(overlay: str, folder: Path) -> list[dict[str, Any]]:
    """An overlay with the component, by the commands of the guide."""
    shutil.copytree(ROOT, folder / "manifests")
    (commands,) = [block for block in BLOCKS if "network-policy" in block]
    chosen = folder / "manifests" / "overlays" / overlay
    return documents(printed(["bash", "-eu", "-c", f"overlay={chosen}\n{commands}"]))


def reads(objects: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """The kinds that the role may list and watch, by group and plural."""
    return {
        (group, resource)
        for rule in one(objects, "ClusterRole")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if {"list", "watch"} <= set(rule["verbs"])
    }


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_component_grants_the_rights_and_sets_the_flag(overlay: str, tmp_path: Path) -> None:
    objects = with_component(overlay, tmp_path)
    assert [problem for each in objects for problem in problems(each)] == []
    assert reads(objects) == {(kind.group, kind.plural) for kind in KINDS}
    spec = pod_spec(one(objects, "DaemonSet"))
    (container,) = spec["containers"]
    assert container["args"].count(FLAG) == 1
    assert FLAG in {name for option in run.params if isinstance(option, click.Option) for name in option.opts}
    assert all(FLAG not in init.get("args", ()) for init in spec["initContainers"])
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts.keys() <= volumes.keys()
    assert (volumes["cni-results"]["hostPath"]["path"], mounts["cni-results"]["readOnly"]) == (
        "/var/lib/cni",
        True,
    )


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_without_the_component_there_is_neither(overlay: str) -> None:
    objects = built(ROOT / "overlays" / overlay)
    assert reads(objects).isdisjoint((kind.group, kind.plural) for kind in POLICY_KINDS)
    (container,) = pod_spec(one(objects, "DaemonSet"))["containers"]
    assert FLAG not in container["args"]


def test_the_rights_change_nothing() -> None:
    patches = yaml.safe_load((ROOT / "components" / "network-policy" / "rights.yaml").read_text())
    verbs = {verb for patch in patches for verb in patch["value"]["verbs"]}
    assert verbs == {"get", "list", "watch"}
