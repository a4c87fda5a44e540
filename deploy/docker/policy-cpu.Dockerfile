# The policy on a CPU: vLLM's CPU build behind tokens, versions and live weights.
FROM python:3.11-slim-bookworm
WORKDIR /build
COPY pyproject.toml constraints.txt ./
COPY scripts/packages scripts/
COPY deploy/docker/install deploy/docker/
# Images with torch share its layer.
ARG TORCH=cpu
RUN deploy/docker/install torch
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends libnuma1 >/dev/null \
 && rm -rf /var/lib/apt/lists/*
RUN deploy/docker/install "policy-cpu"

WORKDIR /app
COPY prism prism
COPY services services
COPY trainer trainer
RUN python3 -m compileall -q .

ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title="PRISM policy, CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# The root file system may be read-only: what libraries want to cache goes to /tmp.
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PRISM_HOST=0.0.0.0 PRISM_PORT=8000 PRISM_ADMIN_PORT=8001
USER 10001:10001
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=6s --start-period=600s --retries=3 CMD ["python3", "-m", "prism.http.healthcheck"]
ENTRYPOINT ["python3", "-m", "prism"]
CMD ["serve", "policy"]
