# One image for the web, the workers and the release step; the command chooses:
#   docker run -e DATABASE_URL -e REDIS_URL -e PORT IMAGE                      the web (default)
#   docker run -e DATABASE_URL -e REDIS_URL IMAGE python -m workers            a worker
#   docker run -e DATABASE_URL -e REDIS_URL IMAGE python -m workers --isolated one for isolated agents
#   docker run -e DATABASE_URL -e REDIS_URL IMAGE runtail migrate              the migrations

# Debian 13 with the Python that it also packages: `make test-image` makes this base from its packages.
FROM python:3.13-slim-trixie AS build
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The locked dependencies alone first: this layer changes only with the lock.
COPY requirements.txt requirements-build.txt ./
RUN pip install -r requirements.txt -r requirements-build.txt
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
COPY clients/python clients/python
RUN pip install --no-deps --no-build-isolation . ./clients/python && pip uninstall --yes setuptools flit_core

FROM python:3.13-slim-trixie
RUN useradd --system --no-create-home --uid 10001 runtail
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PORT=8000
COPY --from=build /venv /venv
WORKDIR /srv
COPY wsgi.py gunicorn.conf.py ./
USER runtail
EXPOSE 8000
# A container that runs something else than the web has no port to ask.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s CMD ["python", "-c", "\
import os, urllib.request; \
b'gunicorn' in open('/proc/1/cmdline', 'rb').read() and \
urllib.request.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/healthz', timeout=4)"]
CMD ["gunicorn", "wsgi:app"]
