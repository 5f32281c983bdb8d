"Builds the package from `settings.ini`, the one place where nbdev keeps a project's facts."
import os
import tempfile
from configparser import ConfigParser
from pathlib import Path

import setuptools

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
statuses = ["1 - Planning", "2 - Pre-Alpha", "3 - Alpha", "4 - Beta", "5 - Production/Stable"]
lib = cfg["lib_name"]
options = {}
if not os.access(here, os.W_OK):  # a read-only clone: what setuptools builds on the way goes elsewhere
    elsewhere = tempfile.TemporaryDirectory(prefix=f"{lib}-build-")  # until this process ends
    options = {"build": {"build_base": elsewhere.name}, "egg_info": {"egg_base": elsewhere.name}}

setuptools.setup(
    name=lib,
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url=cfg["git_url"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    classifiers=[
        f"Development Status :: {statuses[int(cfg['status']) - 1]}",
        "Intended Audience :: Science/Research",
        f"Intended Audience :: {cfg['audience']}",
        "Natural Language :: English",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    # the studies are run from a clone, whose notebooks and committed runs they belong to
    packages=setuptools.find_packages(include=[lib, f"{lib}.*"], exclude=[f"{lib}.studies"]),
    package_data={lib: ["assets/*", "assets/**/*"]},
    include_package_data=True,
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    # hf: Hugging Face data sets, tokenizers and text towers
    extras_require={"dev": cfg["dev_requirements"].split(), "hf": cfg["hf_requirements"].split()},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{lib}={lib}._modidx:d"],  # where nbdev looks up what a name in backticks links to
    },
    zip_safe=False,
    options=options,
)
