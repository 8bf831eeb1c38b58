"""Starts the embedding server of an encoder replica as the settings say, or says what to change in them."""

from __future__ import annotations

from configs import TransferConfig, TriptychConfig
from transfer import EmbeddingServer, ServerSettings, cluster_key, require_key, send_channels
from transfer.channels import SendChannel

_MIB = 2**20


def start_server(config: TriptychConfig, host: str, fingerprint: str) -> EmbeddingServer:
    """Bind and start.

    Args:
        host: address of this node, bound unless `transfer.bind_host` names another.

    Raises:
        ValueError: the settings do not fit this machine; the message says which and what would.
    """
    assert config.encoder is not None
    transfer = config.transfer
    bind_host = transfer.bind_host or host
    curve = cluster_key(transfer.curve_key_file)
    require_key(curve, bind_host, transfer.insecure)
    settings = ServerSettings(
        bind_host=bind_host,
        lease_s=transfer.lease_s,
        max_leases=config.encoder.max_pending_items,
        max_bytes=transfer.arena_bytes,
        checksum=transfer.checksum,
        curve=curve,
    )
    channels = _channels(transfer, bind_host, config.device)
    try:
        return EmbeddingServer(fingerprint, settings, channels)
    except BaseException:
        for channel in channels:
            channel.close()
        raise


def _channels(transfer: TransferConfig, host: str, device: str) -> list[SendChannel]:
    try:
        return send_channels(transfer.channels, transfer.arena_bytes, host, device)
    except OSError as error:
        raise ValueError(
            f"/dev/shm has no room for the {transfer.arena_bytes / _MIB:.0f} MiB of transfer.arena_bytes that each "
            f"encoder replica reserves ({error.strerror}): enlarge it (mount -o remount,size=8G /dev/shm, or "
            "docker run --shm-size=8g), lower transfer.arena_bytes, or leave shm out of transfer.channels"
        ) from error
