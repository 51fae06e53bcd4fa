"""A real server process with a slow fake model, to be killed in the middle of a job.

python job_server.py STATE READY_FILE SECONDS_PER_BATCH INDEX
"""

import sys
import time
from pathlib import Path

from fake_model import FakeModel

from armillary.serving.app import create_app
from armillary.serving.index.embedding_index import EmbeddingIndex
from armillary.serving.jobs.jobs import JobSettings
from armillary.serving.server import run_app
from armillary.serving.state_stores import open_stores

CHUNK = 5

if __name__ == "__main__":
    state, ready_file, seconds, index = sys.argv[1:]

    class Slow(FakeModel):
        def embed(self, observations, space="aligned"):
            time.sleep(float(seconds))
            return super().embed(observations, space)

    app = create_app(Slow(), EmbeddingIndex.load(index), state=Path(state))
    open_stores(app.state.service, JobSettings(chunk_objects=CHUNK))
    run_app(app, ready_file=ready_file)
