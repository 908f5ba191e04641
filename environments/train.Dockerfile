# The training image: runs notebooks with the locked requirements and nothing else.
#   docker build -f environments/train.Dockerfile -t n2p-train .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/project" n2p-train run notebooks/train.ipynb
ARG PYTHON_VERSION=3.11
FROM python:${PYTHON_VERSION}-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    # The image has no git; without this MLflow complains about it on every run.
    GIT_PYTHON_REFRESH=quiet \
    # For Jupyter's files and MLflow's name of the user, whatever user id the container is started with.
    HOME=/tmp \
    USER=n2p

WORKDIR /src
# The requirements change less often than the code: their layer stays cached.
COPY environments/core.lock environments/serve.Dockerfile environments/
RUN pip install --require-hashes -r environments/core.lock
COPY settings.ini setup.py pyproject.toml README.md LICENSE ./
COPY notebook_to_prod notebook_to_prod
COPY nbs/examples nbs/examples
# setuptools comes from the lock too, so nothing is downloaded here.
RUN pip install --no-deps --no-build-isolation .

RUN useradd --uid 10001 --no-create-home n2p && install -d -o n2p /project
USER 10001
WORKDIR /project
ENTRYPOINT ["n2p"]
CMD ["--help"]
