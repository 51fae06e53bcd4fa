"""A server with the model of the tests as a process of its own, to be killed: READY_FILE SECONDS_PER_CALL."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import FakeModel

from armillary.serving.app import create_app
from armillary.serving.server import run_app


class SlowModel(FakeModel):
    def embed(self, observations, space="aligned"):
        time.sleep(float(sys.argv[2]))
        return super().embed(observations, space)


if __name__ == "__main__":
    run_app(create_app(SlowModel()), ready_file=sys.argv[1])
