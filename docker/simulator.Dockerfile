# Closed-loop evaluation without a GPU: ManiSkill, rendered by Mesa's software Vulkan (Debian 13 has Mesa 25).
#   docker build -f docker/simulator.Dockerfile -t mvp-lam-simulator .
#   docker run -v "$PWD/runs:/project/runs" mvp-lam-simulator \
#       --config configs/eval/smoke.yaml --policies runs/smoke --out runs/smoke/evaluate
# The image runs as user 1010, who must be able to write to the mounted folder (mkdir -p runs && chmod a+rwx runs).
FROM python:3.12-slim-trixie

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libgl1 libglib2.0-0t64 libvulkan1 libx11-6 mesa-vulkan-drivers \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1010 simulator && mkdir --parents /project && chown simulator /project
WORKDIR /project

COPY --chown=simulator pyproject.toml README.md LICENSE ./
COPY --chown=simulator core core
COPY --chown=simulator lam lam
COPY --chown=simulator vla vla
COPY --chown=simulator eval eval
RUN pip install --editable '.[sim,report,weights]'

COPY --chown=simulator configs configs
COPY --chown=simulator scripts scripts

USER 1010
# A build whose simulator cannot render fails here rather than in the first episode.
RUN python -c "import sapien; sapien.render.RenderSystem(sapien.Device('cpu'))"

ENTRYPOINT ["python", "scripts/evaluate.py"]
CMD ["--help"]
