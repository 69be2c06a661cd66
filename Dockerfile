# syntax=docker/dockerfile:1
# Three stages: what builds and what is left out stays behind. The image holds one layer: Debian, Python, iptables, nft,
# and kproxy with its virtual environment.
ARG PYTHON=3.13-slim-bookworm

FROM python:${PYTHON} AS build
# python-iptables comes as source; the other packages are wheels.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY kproxy kproxy
RUN pip wheel -q --no-cache-dir --disable-pip-version-check --no-deps -w /wheels . \
 && python -m venv /opt/kproxy \
 && PIP_CONSTRAINT=constraints.txt /opt/kproxy/bin/pip install --no-cache-dir --disable-pip-version-check \
      "$(echo /wheels/kproxy-*.whl)[legacy]"
# The kubernetes package is 118 MB, more than all others together. kproxy uses its kubeconfig loader only: not its
# asyncio client (68 MB), and none of the API classes, which it imports one by one and which so need no bytecode.
RUN cd /opt/kproxy/lib/python*/site-packages \
 && rm -rf pip* kubernetes/aio \
 && find . -name tests -type d -prune -exec rm -rf {} + \
 && /opt/kproxy/bin/python -m compileall -q -x 'kubernetes/client/(api|models)/' /opt/kproxy/lib \
 && find kubernetes/client/api kubernetes/client/models -name '*.pyc' -delete
# Fails if a release of a package needs something that was removed.
RUN /opt/kproxy/bin/kproxy --help \
 && /opt/kproxy/bin/python -c "import importlib, kproxy, pkgutil; \
      [importlib.import_module(each.name) for each in pkgutil.walk_packages(kproxy.__path__, 'kproxy.')]" \
 && /opt/kproxy/bin/python -c "from kubernetes import config; from kubernetes.client import ApiClient, Configuration" \
 && /opt/kproxy/bin/python -c "from kubernetes.config import ConfigException, incluster_config, kube_config"

FROM python:${PYTHON} AS node
# iptables brings both variants; nftables is for people who look at a node (kproxy writes without it); kmod is for
# the init container of IPVS mode.
RUN apt-get update \
 && apt-get install -y --no-install-recommends iptables nftables kmod \
 && rm -rf /var/lib/apt/lists/* \
 && cd /usr/local/lib/python3.* \
 && rm -rf site-packages/pip* ensurepip idlelib tkinter turtledemo /usr/local/bin/pip* /usr/local/bin/idle*
COPY --from=build /opt/kproxy /opt/kproxy

# One layer, so that what was removed takes no space.
FROM scratch
COPY --from=node / /
ENV PATH=/opt/kproxy/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["kproxy"]
CMD ["run"]
