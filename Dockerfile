# syntax=docker/dockerfile:1
# Two stages: what builds stays behind, and the image holds kproxy, its virtual environment, iptables and nft.
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
      "$(echo /wheels/kproxy-*.whl)[legacy]" \
 && rm -rf /opt/kproxy/lib/python*/site-packages/pip* \
 && /opt/kproxy/bin/python -m compileall -q /opt/kproxy/lib

FROM python:${PYTHON}
# iptables brings both variants; nftables is for people who look at a node (kproxy writes without it); kmod is for
# the init container of IPVS mode.
RUN apt-get update \
 && apt-get install -y --no-install-recommends iptables nftables kmod \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/kproxy /opt/kproxy
ENV PATH=/opt/kproxy/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["kproxy"]
CMD ["run"]
