# The image of one service: a folder made by `n2p export-service NAME@production DIR`, which holds a copy of this file
# beside app.py, bundle/, requirements.lock and notebook_to_prod/, the few modules that the service runs.
#   docker build -t NAME DIR
#   docker run --rm --read-only --tmpfs /tmp --cap-drop ALL -e N2P_WITHOUT_AUTHENTICATION=1 -p 127.0.0.1:8000:8000 NAME
# Without that variable, or keys (N2P_API_KEYS=/run/secrets/keys.toml), only requests from inside the container are answered.
ARG PYTHON_VERSION=3.11
FROM python:${PYTHON_VERSION}-slim-bookworm AS requirements

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.lock /
# The environment gets no pip of its own: nothing can be installed where the service runs.
RUN python -m venv --without-pip /venv && pip --python /venv/bin/python install --require-hashes -r /requirements.lock

FROM python:${PYTHON_VERSION}-slim-bookworm

ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

RUN python -m pip uninstall --quiet --yes --root-user-action ignore pip setuptools wheel \
    && useradd --uid 10001 --user-group --no-create-home n2p
COPY --from=requirements /venv /venv
WORKDIR /service
COPY notebook_to_prod notebook_to_prod
COPY bundle bundle
COPY app.py service.tom[l] ./

USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import ssl\nfrom urllib.request import urlopen\ntry:\n urlopen('http://127.0.0.1:8000/health', timeout=2)\nexcept OSError:\n urlopen('https://127.0.0.1:8000/health', timeout=2, context=ssl._create_unverified_context())"]
CMD ["python", "app.py", "--host", "0.0.0.0", "--port", "8000"]
