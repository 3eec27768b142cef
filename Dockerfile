# Two stages: a virtual environment from the lock file, then only that and Python. Nothing at run time needs a shell,
# a writable root or root's rights: /var/lib/fhirshield is a volume, /tmp may be memory.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements.lock ./
RUN python3 -m venv /venv \
 && /venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY fhirshield fhirshield
COPY rules rules
RUN /venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation .

FROM ${BASE}
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
COPY --from=build /venv /venv
WORKDIR /var/lib/fhirshield
USER 10001:10001
EXPOSE 8080 9090
ENTRYPOINT ["/venv/bin/fhirshield"]
CMD ["serve", "/etc/fhirshield/config/fhirshield.yaml"]
