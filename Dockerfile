# Two stages: a virtual environment from the lock file, then only that and Python; no shell is needed to run it.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes --requirement requirements.lock
COPY fhirshield fhirshield
COPY rules rules
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/fhirshield --create-home shield
COPY --from=build /venv /venv
USER 10001
WORKDIR /var/lib/fhirshield
EXPOSE 8080
ENTRYPOINT ["/venv/bin/fhirshield"]
CMD ["serve", "/etc/fhirshield/fhirshield.yaml"]
