# Variational Memory Addressing, with the torch and the CUDA libraries of the base image; runs without a GPU too.
#
#   docker build -t vma .
#   docker run --rm --gpus all --user $(id -u):$(id -g) \
#     -v "$PWD/runs:/app/runs" -v "$PWD/datasets:/app/datasets" vma python run.py --config configs/vma.yaml --train
#
# Without a GPU, a smaller image:
#
#   docker build -t vma --build-arg BASE=python:3.12-slim \
#     --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .

ARG BASE=pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime
FROM ${BASE}

# Another place where pip looks for torch.  Unset, only that of the base image and the usual index count.
ARG PIP_EXTRA_INDEX_URL

# requirements.lock, with BASE=python:3.11-slim and the index above, takes only files whose hashes are known.
ARG REQUIREMENTS=requirements.txt

# Whoever runs the container may have no entry in /etc/passwd and no home: caches go to /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    USER=vma \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

WORKDIR /app

# The image's own Python refuses `pip install`.  A virtual environment may install, and with the system's packages in
# sight a torch of the image satisfies requirements.txt, so that none is downloaded; the last line asserts it.  Without
# a pip of its own the environment uses the image's, which also works where the image has no ensurepip.
COPY requirements.txt requirements.lock ./
RUN own=$(python3 -c "import torch; print(torch.__file__)" 2>/dev/null || true) \
    && python3 -m venv --system-site-packages --without-pip /opt/venv \
    && python -m pip install --no-cache-dir -r "${REQUIREMENTS}" \
    && python -c "import sys, torch; assert sys.argv[1] in ('', torch.__file__), \
'the base image has another torch than requirements.txt names: ' + sys.argv[1]" "$own"

COPY . .
# Readable by every user, whatever the umask was where the image was built.  The two folders are for volumes; without
# a volume everyone may write there.
RUN mkdir -p runs datasets \
    && chmod -R a+rX . \
    && chmod 1777 runs datasets
VOLUME ["/app/runs", "/app/datasets"]

# TensorBoard's
EXPOSE 6006

# Not root, even where --user is forgotten.
USER 1000:1000

CMD ["python", "run.py", "--help"]
