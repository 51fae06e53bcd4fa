"""A server of the fake model in a process of its own: prints its port.

python serve_fake_model.py MAX_BODY_BYTES STATE_FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import uvicorn
from fake_model import FakeModel

from armillary.serving.app import create_app
from armillary.serving.limits import Limits


class Announcing(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)


def main():
    torch.set_num_threads(1)
    app = create_app(FakeModel(), limits=Limits(max_body_bytes=int(sys.argv[1])), state=Path(sys.argv[2]))
    Announcing(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", access_log=False)).run()


if __name__ == "__main__":
    main()
