# `dali serve` on the CPU, as a container: docs/DEPLOYING.md.
#
#     docker build -t dali .
#     docker run -p 127.0.0.1:8000:8000 -e DALI_API_KEY=... -v dali-models:/models -v dali-cache:/cache dali serve org/name

FROM python:3.13-slim-bookworm AS build
# torch's builds for CPUs have an index of their own; another one may have them, too, or builds for GPUs.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY requirements.lock ./
# The lock's versions, without what it names for tests: no hashes, so that pip takes them for constraints.
RUN sed -n 's/^\([a-z0-9].*\) \\$/\1/p' requirements.lock > /constraints.txt \
    && python -m venv /opt/dali \
    && /opt/dali/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" \
        "$(sed -n 's/^# \(torch==\)/\1/p' requirements.lock)"
COPY pyproject.toml README.md LICENSE ./
COPY setup setup
COPY src src
RUN PIP_CONSTRAINT=/constraints.txt /opt/dali/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && PIP_CONSTRAINT=/constraints.txt /opt/dali/bin/pip install --no-cache-dir /wheels/*.whl \
    && /opt/dali/bin/python -c "from dali.kernels import native; assert native.enabled(), 'the kernels were not built'"

FROM python:3.13-slim-bookworm
COPY --from=build /opt/dali /opt/dali
RUN useradd --uid 1000 --create-home dali \
    && install --directory --owner dali --group dali /models /cache
# Below /models lies what the hub gives, and whatever else is put there; below /cache what dali makes of it.
ENV PATH=/opt/dali/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models/hub \
    DALI_CACHE_DIR=/cache \
    DALI_HOST=0.0.0.0
USER dali
WORKDIR /models
VOLUME ["/models", "/cache"]
EXPOSE 8000
# A model may take long to come from the hub and to be packed: 503 until then.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60m --start-interval=5s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# `serve` listens on all of the container's addresses, so it refuses to start without DALI_API_KEY.
ENTRYPOINT ["dali"]
CMD ["serve"]
