# A rollout worker: prompts from one stream, judged groups to another. No torch.
FROM python:3.11-slim-bookworm
WORKDIR /build
COPY pyproject.toml constraints.txt ./
COPY scripts/packages scripts/
COPY deploy/docker/install deploy/docker/
RUN deploy/docker/install "s3"

WORKDIR /app
COPY prism prism
COPY services services
COPY trainer trainer
RUN python3 -m compileall -q .

ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title="PRISM rollout worker" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# The root file system may be read-only: what libraries want to cache goes to /tmp.
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PRISM_HOST=0.0.0.0 PRISM_PORT=8000
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=6s --start-period=600s --retries=3 CMD ["python3", "-m", "prism.http.healthcheck"]
ENTRYPOINT ["python3", "-m", "prism"]
CMD ["serve", "rollouts"]
