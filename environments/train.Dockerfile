# The training image: runs notebooks with the locked requirements and nothing else. Of this checkout alone:
#   docker build -f environments/train.Dockerfile -t n2p-train .
# With the lock of a project, which has to ask for notebook_to_prod's requirements too (`n2p lock` resolves them together):
#   docker build -f environments/train.Dockerfile --build-context project=/path/to/project -t n2p-train .
# Then:
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/project" n2p-train run notebooks/train.ipynb
ARG PYTHON_VERSION=3.11

# What a build without --build-context takes for the project.
FROM scratch AS project
COPY environments/core.lock /requirements.lock

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
COPY environments/serve.Dockerfile environments/
COPY --from=project requirements.lock /requirements.lock
RUN pip install --require-hashes -r /requirements.lock
COPY settings.ini setup.py pyproject.toml README.md LICENSE ./
COPY notebook_to_prod notebook_to_prod
COPY nbs/examples nbs/examples
# setuptools comes from the lock too, so nothing is downloaded here.
# A requirement that the lock lacks fails the build, and not a run.
RUN pip install --no-deps --no-build-isolation . && pip check

RUN useradd --uid 10001 --no-create-home n2p && install -d -o n2p /project
USER 10001
WORKDIR /project
ENTRYPOINT ["n2p"]
CMD ["--help"]
