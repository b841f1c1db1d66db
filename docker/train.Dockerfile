# Training, labelling and audits on GPUs. Build in the repository's root:
#   docker build -f docker/train.Dockerfile -t mvp-lam-train .
#   docker run --gpus all --shm-size 16g -v "$PWD/runs:/project/runs" mvp-lam-train \
#       python scripts/train_lam.py --config configs/lam/quickstart.yaml --out runs/lam
# The image runs as user 1010, who must be able to write to the mounted folder (mkdir -p runs && chmod a+rwx runs).
FROM pytorch/pytorch:2.9.1-cuda12.8-cudnn9-devel

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_BREAK_SYSTEM_PACKAGES=1

# The compiler and ninja are for DeepSpeed's operators, which are built at first use.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git ninja-build \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1010 trainer && mkdir --parents /project && chown trainer /project
WORKDIR /project

# The base image's torch satisfies the project, so its CUDA build stays.
COPY --chown=trainer pyproject.toml README.md LICENSE ./
COPY --chown=trainer core core
COPY --chown=trainer lam lam
COPY --chown=trainer vla vla
COPY --chown=trainer eval eval
RUN pip install --editable '.[deepspeed,wandb,tensorboard,weights,report]'

COPY --chown=trainer configs configs
COPY --chown=trainer scripts scripts

USER 1010
CMD ["python", "-c", "import torch; print(torch.__version__, torch.cuda.device_count(), 'GPUs')"]
