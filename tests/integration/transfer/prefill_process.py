"""A real prefill process for tests: fetches one embedding in place, says how that went, and stays until it is killed.

Arguments: fingerprint, the reference as JSON, channels. Prints `asking`, then `held` or `copied`.
"""

import json
import sys
import time

import torch

from transfer import EmbeddingClient, EmbeddingRef, receive_channels

_WAIT_S = 300.0


def main() -> None:
    client = EmbeddingClient(sys.argv[1], None, receive_channels(sys.argv[3:]))
    future = client.fetch_in_place(EmbeddingRef.from_dict(json.loads(sys.argv[2])), _WAIT_S)
    sys.stdout.write("asking\n")
    sys.stdout.flush()
    arrived = future.result(_WAIT_S)
    sys.stdout.write("copied\n" if isinstance(arrived, torch.Tensor) else "held\n")
    sys.stdout.flush()
    time.sleep(_WAIT_S)


if __name__ == "__main__":
    main()
