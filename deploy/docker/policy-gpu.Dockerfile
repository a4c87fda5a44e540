# The policy on GPUs: the official vLLM image, with PRISM's tokens, versions and live weights in front.
FROM vllm/vllm-openai:v0.26.0
USER root
WORKDIR /build
COPY pyproject.toml ./
COPY scripts/packages scripts/
COPY deploy/docker/install deploy/docker/
# The image's own versions are the lock file: what it lacks is added, nothing in it is changed.
RUN python3 -m pip freeze | grep '==' >constraints.txt && deploy/docker/install ""
# For push.transport = "broadcast" both sides need one release of NCCL: the trainer's, which torch 2.13.0 asks for, is
# --build-arg NCCL=2.29.7. Without it the image's own stays.
ARG NCCL=
RUN [ -z "$NCCL" ] || python3 -m pip install --no-cache-dir --no-deps "nvidia-nccl-cu13==$NCCL"

WORKDIR /app
COPY prism prism
COPY services services
COPY trainer trainer
RUN python3 -m compileall -q .

ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title="PRISM policy, GPU" \
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
