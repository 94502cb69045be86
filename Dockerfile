# One image for CPU and CUDA: the locked torch runs on both. For a smaller, CPU-only image name an index that has
# CPU builds of the locked torch and torchvision:  docker build --build-arg TORCH_INDEX=… -t polycl .
# Run:  docker run -p 127.0.0.1:8000:8000 -v /my/studies:/studies -v polycl-state:/state polycl     (CUDA: add --gpus all)
# Until there are users nobody has to sign in: publish the port on loopback alone. See docs/operations.md.

FROM python:3.11-slim AS build
WORKDIR /app
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON=/app/.venv/bin/python
# Dependencies come before the code, so that a change of code does not install them again.
COPY requirements.txt pyproject.toml LICENSE README.md ./
RUN python -m pip install --no-cache-dir --constraint requirements.txt uv && python -m venv --without-pip .venv
ARG TORCH_INDEX=""
# torch's and torchvision's local versions (+cpu) rank above the plain ones, so the named index wins for both.
RUN --mount=type=cache,target=/root/.cache/uv \
    UV_INDEX="$TORCH_INDEX" UV_INDEX_STRATEGY=unsafe-best-match \
    uv pip install --constraint requirements.txt --build-constraints requirements.txt --requirements pyproject.toml
COPY lib lib
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --no-deps --build-constraints requirements.txt --editable .

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 polycl && install -d -o polycl -g polycl /state /weights /studies
WORKDIR /app
COPY --from=build /app /app
COPY apps apps
COPY model model
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 POLYCL_STATE=/state POLYCL_WEIGHTS=/weights POLYCL_HOSTS=localhost
USER polycl
VOLUME ["/state", "/weights"]
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["polycl", "serve", "--host", "0.0.0.0", "--insecure-public", "--studies", "/studies"]
