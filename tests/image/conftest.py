"""The image, built once. Where it cannot be built these tests are skipped, except in CI, where they fail."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.image.engine import Engine, Image, base
from tests.programs import give_up, needed


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """What the Dockerfile makes."""
    for program in ("buildah", "debootstrap", "unshare", "nsenter"):
        needed(program, os.environ["PATH"] + ":/usr/sbin:/sbin")
    if os.geteuid() != 0:
        give_up("Building an image in a folder needs root.")
    engine = Engine(tmp_path_factory.mktemp("image"))
    engine.make_base(base())
    yield engine.build()
    engine("umount", "--all")
    shutil.rmtree(engine.folder)  # a gigabyte
