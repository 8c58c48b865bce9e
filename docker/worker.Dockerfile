# The worker. TORCH_INDEX decides what it computes on:
#   CPU   docker build -f docker/worker.Dockerfile .
#   CUDA  docker build -f docker/worker.Dockerfile --build-arg TORCH_INDEX=https://pypi.org/simple .
# PyPI's torch for Linux brings the CUDA libraries along; the host provides the driver and the NVIDIA container toolkit.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/modelpress
ENV PATH=/opt/modelpress/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
# Dependencies first, without our packages, so that a change of code does not fetch them again.
COPY pyproject.toml README.md LICENSE ./
RUN pip install --constraint constraints.txt '.[worker,gguf]'
COPY modelpress modelpress
COPY app app
COPY workers workers
COPY migrations migrations
RUN pip install --no-deps --force-reinstall .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin modelpress \
    && install --directory --owner=modelpress --group=modelpress --mode=0750 /data
COPY --from=build /opt/modelpress /opt/modelpress
COPY docker/check_worker.py /opt/modelpress/
ENV PATH=/opt/modelpress/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    MODELPRESS_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
HEALTHCHECK --interval=60s --timeout=30s --start-period=30s CMD ["python", "/opt/modelpress/check_worker.py"]
CMD ["modelpress", "worker"]
