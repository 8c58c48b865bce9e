# The API and the migrations. Holds the extra [server] and nothing that computes: no torch.
# Build from the root of the checkout: docker build -f docker/api.Dockerfile .

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/modelpress
ENV PATH=/opt/modelpress/bin:$PATH
WORKDIR /src
# Dependencies first, without our packages, so that a change of code does not fetch them again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install --constraint constraints.txt '.[server]'
COPY modelpress modelpress
COPY app app
COPY workers workers
COPY migrations migrations
RUN pip install --no-deps --force-reinstall .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin modelpress \
    && install --directory --owner=modelpress --group=modelpress --mode=0750 /data
COPY --from=build /opt/modelpress /opt/modelpress
COPY docker/check_api.py /opt/modelpress/
ENV PATH=/opt/modelpress/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    MODELPRESS_DATA_DIR=/data \
    MODELPRESS_HOST=0.0.0.0
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=10s --start-period=20s CMD ["python", "/opt/modelpress/check_api.py"]
CMD ["modelpress", "api"]
