"""Find the packages; everything else is in setup.cfg.

kernels/ and weights/ stand at the top of the checkout and are installed as ``vitnp.kernels`` and ``vitnp.weights``,
which ``find:`` in setup.cfg cannot express.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["vitnp", "vitnp.*"]),
        *(f"vitnp.{name}" for name in find_packages(include=["kernels", "kernels.*", "weights", "weights.*"])),
    ],
    package_dir={"vitnp.kernels": "kernels", "vitnp.weights": "weights"},
)
