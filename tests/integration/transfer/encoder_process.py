"""A real encoder process for tests: one embedding server that publishes what it is told, line by line.

Commands on standard input: `announce ID N W DTYPE`, `publish ID N W DTYPE SEED`, `stop`. Answers `ok` to each.
"""

import sys

import torch

from transfer import EmbeddingServer, ServerSettings, send_channels, tensor_to_buffer, torch_dtype

_ARENA_BYTES = 4 * 1024 * 1024


def main() -> None:
    torch.set_num_threads(1)
    server = EmbeddingServer(sys.argv[1], ServerSettings(), send_channels(sys.argv[2:], _ARENA_BYTES))
    answer(server.endpoint)
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "stop":
            break
        transfer_id, num_tokens, width, dtype = arguments[0], int(arguments[1]), int(arguments[2]), arguments[3]
        if command == "announce":
            server.announce(transfer_id, "key", num_tokens, width, dtype)
        else:
            generator = torch.Generator().manual_seed(int(arguments[4]))
            tensor = torch.randn(num_tokens, width, generator=generator).to(torch_dtype(dtype))
            server.publish(transfer_id, tensor_to_buffer(tensor), (num_tokens, width), dtype)
        answer("ok")
    server.close()
    answer("ok")


def answer(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
