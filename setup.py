"""Pass the metadata and requirements of settings.ini to setuptools; whatever is fixed stands in pyproject.toml."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="], interpolation=None)
config.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
settings = config["DEFAULT"]


def lines(key: str) -> list[str]:
    """Return the non-empty lines of a multi-line setting."""
    return [line.strip() for line in settings[key].splitlines() if line.strip()]


extras = {key.removeprefix("extra_"): lines(key) for key in settings if key.startswith("extra_")}
# The example notebooks and the service's Dockerfile have one home each; the wheel carries them as package data from there.
HOMES = {"notebook_to_prod.examples": "nbs/examples", "notebook_to_prod.environments": "environments"}

setup(
    version=settings["version"],
    description=settings["description"],
    keywords=settings["keywords"].split(),
    packages=[*find_packages(include=["notebook_to_prod", "notebook_to_prod.*"]), *HOMES],
    package_dir=HOMES,
    package_data={
        "notebook_to_prod": ["py.typed", "*/templates/**"],
        "notebook_to_prod.examples": ["*.ipynb", "*/*.ipynb"],
        "notebook_to_prod.environments": ["serve.Dockerfile"],
    },
    install_requires=lines("requirements"),
    extras_require={**extras, "all": sorted({line for extra in extras.values() for line in extra})},
    entry_points={"console_scripts": lines("console_scripts"), "papermill.engine": lines("papermill_engines")},
)
