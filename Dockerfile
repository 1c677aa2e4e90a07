# Variational Memory Addressing, with the torch and the CUDA libraries of the base image; runs without a GPU too.
#
#   docker build -t vma .
#   docker run --rm --gpus all --user $(id -u):$(id -g) \
#     -v "$PWD/runs:/app/runs" -v "$PWD/datasets:/app/datasets" vma python run.py --config configs/vma.yaml --train

FROM pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime

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
# sight the image's torch satisfies requirements.txt, so that none is downloaded.  Without a pip of its own it uses the
# image's, which also works where the image has no ensurepip.
COPY requirements.txt ./
RUN python3 -m venv --system-site-packages --without-pip /opt/venv \
    && python -m pip install --no-cache-dir -r requirements.txt \
    && python -c "import torch, torchvision; assert torch.version.cuda, 'this is not the torch of the base image'"

COPY . .
# Readable by every user, whatever the umask was where the image was built.  The two folders are for volumes; without
# a volume everyone may write there.
RUN mkdir -p runs datasets \
    && chmod -R a+rX . \
    && chmod 1777 runs datasets
VOLUME ["/app/runs", "/app/datasets"]

# Not root, even where --user is forgotten.
USER 1000:1000

CMD ["python", "run.py", "--help"]
