"""Pass the metadata and requirements of settings.ini to setuptools, and build the same bytes from the same commit.

What would differ from one builder to another is fixed: times (`SOURCE_DATE_EPOCH`, else the last commit), modes, owners, order, leftovers.
"""

import gzip
import os
import shutil
import subprocess
import tarfile
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.egg_info import egg_info
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
EARLIEST = 315532800  # 1980, where the times of a zip archive begin

config = ConfigParser(delimiters=["="], interpolation=None)
config.read(ROOT / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]


def lines(key: str) -> list[str]:
    """Return the non-empty lines of a multi-line setting."""
    return [line.strip() for line in settings[key].splitlines() if line.strip()]


def epoch() -> int:
    """The time that everything built bears: of the sdist that this is, else of the last commit, else the earliest."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return max(int(given), EARLIEST)
    if (ROOT / "PKG-INFO").exists():
        return max(int((ROOT / "PKG-INFO").stat().st_mtime), EARLIEST)
    told = ""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
        told = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return max(int(told or 0), EARLIEST)


def same_mode(mode: int, folder: bool) -> int:
    """0755 for a folder and for what its owner may execute, 0644 for the rest: whatever the umask was."""
    return 0o755 if folder or mode & 0o100 else 0o644


class SameEggInfo(egg_info):
    """Files of the sdist are found anew: an earlier list in the folder adds none."""

    def find_sources(self) -> None:
        Path(self.egg_info, "SOURCES.txt").unlink(missing_ok=True)
        super().find_sources()


class SameSdist(sdist):
    """A tar archive in the order of names, of nobody, with one time."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        if format != "gztar":
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)
        path = Path(f"{base_name}.tar.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open("wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=epoch()) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for each in sorted([Path(base_dir), *Path(base_dir).rglob("*")]):
                archive.add(each, recursive=False, filter=self.same)
        return str(path)

    @staticmethod
    def same(member: tarfile.TarInfo) -> tarfile.TarInfo:
        """The entry without its builder."""
        member.mode = same_mode(member.mode, member.isdir())
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = epoch()
        return member


class SameWheel(bdist_wheel):
    """A wheel with one time and fixed modes, of what is there now."""

    def run(self) -> None:
        os.environ["SOURCE_DATE_EPOCH"] = str(epoch())
        if not self.skip_build:  # Modules that have gone since an earlier build are not to come along
            shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()

    def write_wheelfile(self, *arguments, **options) -> None:
        super().write_wheelfile(*arguments, **options)
        for path in Path(self.bdist_dir).rglob("*"):
            path.chmod(same_mode(path.stat().st_mode, path.is_dir()))


extras = {key.removeprefix("extra_"): lines(key) for key in settings if key.startswith("extra_")}
# The example notebooks and the service's Dockerfile have one home each; the wheel carries them as package data from there.
HOMES = {"notebook_to_prod.examples": "nbs/examples", "notebook_to_prod.environments": "environments"}

setup(
    version=settings["version"],
    description=settings["description"],
    keywords=settings["keywords"].split(),
    packages=[*find_packages(include=["notebook_to_prod", "notebook_to_prod.*"]), *HOMES],
    package_dir=HOMES,
    include_package_data=False,  # what is listed here, not what lies about
    package_data={
        "notebook_to_prod": ["py.typed", "*/templates/**"],
        "notebook_to_prod.examples": ["*.ipynb", "*/*.ipynb"],
        "notebook_to_prod.environments": ["serve.Dockerfile"],
    },
    install_requires=lines("requirements"),
    extras_require={**extras, "all": sorted({line for extra in extras.values() for line in extra})},
    entry_points={"console_scripts": lines("console_scripts"), "papermill.engine": lines("papermill_engines")},
    cmdclass={"egg_info": SameEggInfo, "sdist": SameSdist, "bdist_wheel": SameWheel},
)
